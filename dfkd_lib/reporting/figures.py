"""Paper A's figures beside its tables, drawn of the tables' own artifacts as notebooks 10 to 30 draw them."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from matplotlib.figure import Figure
from torch import Tensor

from dfkd_lib import plots, synthesis
from dfkd_lib.core import NotMade
from dfkd_lib.distill import Study
from dfkd_lib.reporting.parts import Drawing, Given, Part
from dfkd_lib.reporting.report import over, over_seeds
from dfkd_lib.synthesis import CGAN

DRAWS = 3  # images of a class from each generator


def of_pair(given: Given, study: Study, parts: Mapping[str, Part]) -> dict[str, Drawing]:
    """Beside A Tables 4, 5: class probes, images of the GAN that students learn from, students' accuracy over epochs."""

    def images() -> dict[str, Tensor]:
        return {"augmented": study.images("synthetic")[0].images}

    draw, caption = partial(_accuracy, given, parts), "student accuracy per epoch on test images"
    return {
        **_first(given, study, images, "the augmented GAN", given.config.seed),
        "accuracy": Drawing(draw, _number(given, 10), f"{caption}, {over(given.config.seeds)}"),
    }


def of_gans(
    given: Given, study: Study, parts: Mapping[str, Part], arms: Mapping[str, CGAN]
) -> dict[str, Drawing]:
    """Beside A Table 2: class probes, and images of both GANs."""
    seed, classes = given.config.seeds[0], len(given.train_set.classes)
    labels = synthesis.balanced_labels(DRAWS * classes, classes)

    def images() -> dict[str, Tensor]:
        made = {}
        for arm, gan in arms.items():
            generator = gan.generator(parts[f"{arm}, seed {seed}"].make()[0])
            made[arm] = synthesis.generate(generator, labels, 100, given.test_set.shape[1])
        return made

    return _first(given, study, images, "both GANs", seed)


def _first(
    given: Given, study: Study, images: Callable[[], dict[str, Tensor]], whose: str, seed: int
) -> dict[str, Drawing]:
    """Class probes, and real images above those of generators, which come in the order of classes."""

    def probes() -> Figure:
        found = study.probes.tensors("probes.safetensors")["probes"]
        return plots.class_probe_grid(found[:20], given.train_set.classes[:20])

    def rows() -> Figure:
        real, classes = given.train_set, given.train_set.classes
        first = [int((real.labels == k).nonzero()[0]) for k in range(len(classes[:10]))]
        shown = {"real": real.subset(first).images}
        for arm, made in images().items():
            starts = range(0, DRAWS * len(classes), len(classes))
            shown |= {f"{arm} {n}": made[i : i + 10] for n, i in enumerate(starts, 1)}
        return plots.image_rows(shown, classes[:10])

    about = f"real images, and images of {whose}, seed {seed}, one column a class"
    caption = f"class attention probes over the patch grid, {len(study.train_set):,} images"
    return {
        "class_probes": Drawing(probes, _number(given, 3), caption),
        "images": Drawing(rows, _number(given, 7), about),
    }


def _accuracy(given: Given, parts: Mapping[str, Part]) -> Figure:
    """Students' accuracy on test images after every epoch, mean and band over the seeds that are there."""
    histories: dict[str, list] = {}
    for source, seed in ((s, seed) for s in ("real", "synthetic") for seed in given.config.seeds):
        with suppress(NotMade):
            (student,) = parts[f"student, {source}, seed {seed}"].make()
            histories.setdefault(f"student on {source} images", []).append(
                student.json("history.json")
            )
    if not histories:
        raise NotMade("no student has been made yet", fix="run the table")
    means, bands = over_seeds(histories, "test_accuracy", 100)
    return plots.curves(means, "epoch", "test accuracy (%)", bands=bands)


def _number(given: Given, of_digits: int) -> str:
    """A's figure of MNIST, or its next one, of CIFAR-10; "" of other images."""
    place = {"mnist": of_digits, "cifar10": of_digits + 1}.get(given.data)
    return f"A Figure {place}" if place else ""
