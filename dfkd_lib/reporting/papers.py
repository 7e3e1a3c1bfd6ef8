"""The papers' own numbers, to stand beside ours (METHODS.md A and C), and their tables by name; imports no torch."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Args:
        title: what it is. method: of `presets.METHODS`. data: named sets that it can be of, the first by default.
        deviations: lines on what differs from the paper whatever the preset.
        unused: beginnings of settings that change nothing in it.
        choice: whether it compares settings to choose from: then a tenth of the training images measures.
    """

    title: str
    method: str
    data: tuple[str, ...]
    deviations: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    choice: bool = False


_GAN_NOTE = "λ and epochs are ours: the paper names neither"
_AUGMENT_NOTE = (
    "§6.1 augments synthetic images but not how: synthetic_augmentation does, off by default"
)
_SIZE_NOTE = (
    "teacher and students of the GAN's images and labels are our reading of “synthetic data”"
)
_ARMS_NOTE = (
    "the paper's figures are of ImageNet: 74.8 % with half of the images, +2.6 over DeiT-Ti"
)
_C_NOTE = "heads 3 and 2 are those of the published TNT-Ti; the paper is silent"
_CHOICE = "measured on a tenth of the training images, held out: settings are to be chosen by it"
_MAKERS = tuple(
    "guided inversion maker claim probe_ adversarial batch_norm entropy contrast disagreement fast rival".split()
)
_NO_GAN_TABLE = ("student", "weights", "real_images", "synthetic", "teacher_synthetic", *_MAKERS)
_PAIR = (_GAN_NOTE, _SIZE_NOTE, _AUGMENT_NOTE), ("feature", *_MAKERS)
_A2 = ("mnist", "cifar10", "cifar100")
TABLES: dict[str, Table] = {
    "A2": Table(
        "A Table 2: distance at equal epochs", "synthesis", _A2, (_GAN_NOTE,), _NO_GAN_TABLE
    ),
    "A2L": Table(
        "A Table 2's distance against λ",
        "synthesis",
        _A2,
        ("not in the paper, which names no λ", _CHOICE),
        _NO_GAN_TABLE,
        choice=True,
    ),
    "A4": Table(
        "A Table 4: MNIST pair",
        "classification",
        ("mnist",),
        *_PAIR,
    ),
    "A5": Table(
        "A Table 5: CIFAR-10 pair",
        "classification",
        ("cifar10",),
        *_PAIR,
    ),
    "B": Table(
        "B: accuracy against the share of the images, and what each part is worth",
        "early",
        ("cifar10", "mnist", "cifar100"),
        (_ARMS_NOTE, "the source at hand is a summary: METHODS, Deviations"),
    ),
    "C2": Table(
        "C Table 2, Figure 5: which teacher, by which optimizer",
        "titn",
        ("cifar100", "cifar10", "mnist"),
        (
            "CNNs of ImageNet's stems, untrained, at 32 px; the paper starts from pretrained ones",
            _CHOICE,
        ),
        ("alpha", "epochs"),
        choice=True,
    ),
    "C3": Table("C Table 3: CIFAR-100", "titn", ("cifar100",), (_C_NOTE,)),
    "C4": Table("C Table 4: CIFAR-10", "titn", ("cifar10",), (_C_NOTE,)),
    "C5": Table("C Table 5: MNIST", "titn", ("mnist",), (_C_NOTE,)),
    "C6": Table("C Table 6: what is lost from VGG16-BN to TITN", "titn", ("cifar10",)),
}
# Name of a figure of a paper -> what draws it: notebook and data sets.
FIGURES = {
    "A Figures 1-4": ("10", "attention maps, probes, class probes"),
    "A Figures 6-8": ("20", "attention loss, images, distance over epochs"),
    "A Figures 10-13": ("30", "accuracy and loss over epochs, confusion"),
    "A Figures 14-19": ("40", "detection"),
    "B, accuracy against share": ("50", "early features"),
    "C Figure 4 and tables": ("60", "TITN"),
}
