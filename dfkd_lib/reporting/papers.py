"""The papers' own numbers, to stand beside ours: METHODS.md A and C."""

# {place: {(data, metric of a notebook): number}}; accuracies are shares of 1, Fréchet distances in Inception features.
PAPERS = {
    "A Table 2": {
        ("mnist", "frechet_vanilla"): 27.0,
        ("mnist", "frechet_augmented"): 23.0,
        ("cifar10", "frechet_vanilla"): 76.94,
        ("cifar10", "frechet_augmented"): 70.37,
        ("cifar100", "frechet_vanilla"): 83.27,
        ("cifar100", "frechet_augmented"): 77.16,
    },
    "A Table 4": {
        ("mnist", "teacher_real_accuracy"): 0.9875,
        ("mnist", "student_real_accuracy"): 0.9775,
        ("mnist", "teacher_synthetic_accuracy"): 0.9732,
        ("mnist", "student_synthetic_accuracy"): 0.9673,
    },
    "A Table 5": {
        ("cifar10", "teacher_real_accuracy"): 0.8951,
        ("cifar10", "student_real_accuracy"): 0.8777,
        ("cifar10", "teacher_synthetic_accuracy"): 0.8432,
        ("cifar10", "student_synthetic_accuracy"): 0.8237,
    },
}


def paper_number(data: str, metric: str) -> tuple[float | None, str]:
    """(a paper's number for a metric on a data set, its place in the paper); (None, "") where no paper gives one."""
    for place, numbers in PAPERS.items():
        if (data, metric) in numbers:
            return numbers[data, metric], place
    if metric == "titn_top1":
        from dfkd_lib.distill import titn  # imports torch: only where it is needed

        if data in titn.PAPER:
            return titn.PAPER[data]["TITN"][0] / 100, "C Tables 3-6"
    return None, ""
