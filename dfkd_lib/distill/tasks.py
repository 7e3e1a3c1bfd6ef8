"""What notebooks train, task by task: the tasks of one queue make it, and the notebooks find it by its key.

Each function takes the names that a notebook's first cell and its "edit me" cells define, so that a step, a maker or a
student of the notebook's own is what is trained. It returns {what is made, in words: a function that makes it}, longest
first where that is known; tasks may share parts, which the first of them makes.
"""

from collections.abc import Callable, Mapping
from functools import partial

from dfkd_lib import datasets
from dfkd_lib.distill import comparison
from dfkd_lib.distill.step import known_step

Names = Mapping[str, object]
Tasks = dict[str, Callable[[], object]]


def attention(names: Names) -> Tasks:
    """Notebook 10's student, if it is to be looked at."""
    study, config = names["study"], names["cfg"]
    wanted = "student" if (config.second, config.model) == ("auto", "") else config.second
    return {"student, real": partial(study.student, "real")} if wanted == "student" else {}


def synthesis(names: Names) -> Tasks:
    """Every maker's images, measures and student, and both GANs of the equal-epoch comparison from each seed."""
    study, gan = names["study"], names["gan"]
    makers = {
        f"{name}: images and student": partial(comparison.compare_makers, study, {name: maker})
        for name, maker in names["makers"].items()
    }
    arms = {
        f"{arm} GAN, seed {seed}": partial(comparison.one_gan, study, arm_gan, seed)
        for arm, arm_gan in comparison.arms(gan).items()
        for seed in names["cfg"].seeds
    }
    return makers | arms


def classification(names: Names) -> Tasks:
    """Both students from each seed, and the teacher on synthetic images."""
    study, config = names["study"], names["cfg"]
    step = known_step(names["step"], config.weights, config.student, say=lambda line: None)
    made = {
        f"student, {source}, seed {seed}": partial(study.student, source, seed, step)
        for source in ("synthetic", "real")
        for seed in config.seeds
    }
    if config.teacher_synthetic_epochs:
        return {"teacher, synthetic": study.teacher_on_synthetic, **made}
    return made


def early(names: Names) -> Tasks:
    """DearKD and the plain ViT at each share from each seed."""
    store, config, step = names["store"], names["cfg"], names["step"]
    train_set, test_set = datasets.load_splits(config.data)

    def run(variant: str, share: float, seed: int) -> object:
        teacher = config.teacher(store, train_set, test_set)
        pool = train_set.sample(config.images, 5)
        return config.run(store, variant, teacher, pool, test_set, share, seed, step)

    return {
        f"{variant}, {100 * share:g} % of the images, seed {seed}": partial(
            run, variant, share, seed
        )
        for variant in ("DearKD", "plain")
        for share in config.shares
        for seed in config.seeds
    }


def titn(names: Names) -> Tasks:
    """Each model of the tables from each seed."""
    store, config, step = names["store"], names["cfg"], names["step"]
    splits = datasets.load_splits(config.data)

    def run(name: str, student: object, seed: int) -> object:
        return config.run(store, name, config.teacher(store, *splits), *splits, seed, step, student)

    return {
        f"{name}, seed {seed}": partial(run, name, student, seed)
        for name, student in names["students"].items()
        for seed in config.seeds
    }
