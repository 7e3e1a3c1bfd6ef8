"""Makers of images compared: each by what it may see, the same measures, the same student (METHODS D)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from dfkd_lib import metrics, synthesis
from dfkd_lib.core import images_behind, purposes_text, total_text
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.study import Study
from dfkd_lib.metrics import intervals
from dfkd_lib.synthesis import Maker
from dfkd_lib.training import DivergedError

# Columns of the table of makers -> the measure that stands there.
MEASURES = {
    "images measured": "images",
    "Fréchet distance": "frechet",
    "low": "low",
    "high": "high",
    "KID": "kid",
    "KID std": "kid_std",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "score": "score",
}
READ, BEHIND = "real images read", "with teachers and priors"  # by the maker; and by all behind it
FIRST = ("maker", "may see", READ, BEHIND, "images made")
LAST = ("student (%)", "95 % interval", "seconds")
# Of a student: more passes over the few images of an inversion only teach it these.
MOST_EPOCHS = 100


def may_see(maker: Maker) -> str:
    """What a maker may see of the real data, after the number that METHODS D gives it."""
    number = "1" if "real images" in maker.sees else "2" if "class probes" in maker.sees else "3"
    return f"{number}: {maker.budget}"


def chosen_makers(study: Study) -> dict[str, Maker]:
    """The makers that the configuration names, in the order of every table."""
    makers = study.config.maker_settings()
    return {name: makers[name] for name in study.config.maker_names()}


def compare_makers(study: Study, makers: dict[str, Maker]) -> dict[str, dict]:
    """Every maker's "maker", "images", "artifact", "measures", "student", "trained" and "diverged" ("" or what happened).

    A maker that diverges before it has a good state, or whose student does, is left out but for "diverged": the others are
    not lost. Each student is trained on one maker's images alone, for as many steps whatever their number, but for at most
    100 epochs.
    """
    found: dict[str, dict] = {}
    for name, maker in makers.items():
        try:
            found[name] = {"maker": maker, **_compared(study, maker)}
        except DivergedError as error:
            found[name] = {"maker": maker, "diverged": str(error)}
    return found


def _compared(study: Study, maker: Maker) -> dict:
    config = study.config
    images, artifact = study.made(maker, config.maker_images)
    trained, student = maker.train(study.store, study.inputs(maker)), config.student
    few = min(student.images or len(images), len(images))
    epochs = max(1, round(student.epochs * config.maker_images / few))
    epochs = min(epochs, max(MOST_EPOCHS, student.epochs))
    student = student.replace(epochs=epochs, seed=config.seed)
    return {
        "images": images,
        "artifact": artifact,
        "measures": study.measures(images, artifact),
        "student": study.student_on(images, [artifact], student),
        "trained": trained,
        "diverged": trained.metrics["stopped"] if trained else "",
    }


def equal_epochs(
    study: Study, seeds: Sequence[int], gan: synthesis.CGAN | None = None
) -> dict[str, list[dict]]:
    """Table 2's claim: both GANs from each seed, {name: [{"trained", "measures", "curve"} for each seed]}.

    Args:
        gan: the augmented one; the configuration's by default.
    """
    both = arms(gan or study.config.gan)
    return {name: [one_gan(study, one, seed) for seed in seeds] for name, one in both.items()}


def arms(gan: synthesis.CGAN) -> dict[str, synthesis.CGAN]:
    """Both GANs of the comparison by name: they differ in λ alone."""
    return {"vanilla": gan.replace(lam=0.0), "augmented": gan}


def one_gan(study: Study, gan: synthesis.CGAN, seed: int) -> dict:
    """One GAN of the comparison from a seed: {"trained", "measures", "curve"}."""
    maker = gan.replace(seed=seed)
    given = dataclasses.replace(study.inputs(maker), real=study.claim_set)
    trained = maker.train(study.store, given)
    count = study.config.feature.fid_images
    images, artifact = synthesis.make_images(study.store, maker, given, count, maker.seed + 1000)
    return {
        "trained": trained,
        "measures": study.measures(images, artifact, rounds=0),
        "curve": synthesis.distance_curve(
            study.store, maker, trained, given, study.reference, study.space
        ),
    }


def makers_table(study: Study, found: dict[str, dict]) -> pd.DataFrame:
    """The table that matters: maker × real images seen × distance × accuracy of a student trained on its images alone.

    Args:
        found: of `compare_makers`.

    Returns:
        "with teachers and priors" counts each split once, as often as the stage that read most of it;
        intervals are those of the samples: 95 %, images resampled, test images by Wilson.
    """
    rows = []
    for name, part in found.items():
        row = {"maker": name, "may see": may_see(part["maker"]), READ: "diverged"}
        rows.append(row | (_results(study, part) if "artifact" in part else {}))
    return pd.DataFrame(rows, columns=[*FIRST, *MEASURES, *LAST])


def _results(study: Study, part: dict) -> dict:
    """What came out of a maker: the cells of the table behind its name."""
    artifact, trained, total = part["artifact"], part["trained"], len(study.test_set)
    teacher, accuracy = study.inputs(part["maker"]).teacher.key, part["student"].metrics["accuracy"]
    read = images_behind(study.store, artifact, without=teacher)
    low, high = intervals.accuracy_interval(round(accuracy * total), total)
    seconds = artifact.seconds + (trained.seconds if trained else 0)
    return {
        READ: purposes_text(read),
        BEHIND: total_text(images_behind(study.store, artifact)),
        "images made": artifact.metrics["images"],
        **{column: part["measures"].metrics[name] for column, name in MEASURES.items()},
        "student (%)": 100 * accuracy,
        "95 % interval": f"{100 * low:.2f} – {100 * high:.2f}",
        "seconds": round(seconds, 1),
    }


def short_table(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of makers to read first, narrow enough for a page: what was seen, the distance, the student."""

    def shown(text: str, *columns: str) -> pd.Series:
        return table[[*columns]].apply(
            lambda row: "–" if row.isna().any() else text.format(*row), axis=1
        )

    short = table[["maker"]].copy()
    short["student (%) [95 %]"] = shown("{:.2f} [{}]", "student (%)", "95 % interval")
    short["distance [95 %]"] = shown("{:.3g} [{:.3g}, {:.3g}]", "Fréchet distance", "low", "high")
    short["images"] = shown("{:,.0f}", "images made")
    return short.join(table[["may see", READ, BEHIND]]).astype(object).fillna("–")


def published_table() -> pd.DataFrame:
    """The field's figures: maker, teacher, student, student (%), and whose they are: not ours."""
    read = yaml.safe_load(Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8"))
    figures = pd.DataFrame(read["published"]).set_index(["teacher", "student"]).stack()
    long = figures.rename_axis(["teacher", "student", "maker"]).rename("student (%)").reset_index()
    return long[["maker", "teacher", "student", "student (%)"]].assign(whose="theirs")


def warnings_table(found: dict[str, dict]) -> pd.DataFrame:
    """What makes a maker's figures doubtful: maker and warning, divergence first; empty if nothing does."""
    warnings = []
    for name, part in found.items():
        measured = part["measures"].metrics["warnings"] if "measures" in part else []
        diverged = [part["diverged"]] if part["diverged"] else []
        warnings += [(name, text) for text in [*diverged, *measured]]
    return pd.DataFrame(warnings, columns=["maker", "take care"])


def accuracy_points(table: pd.DataFrame) -> pd.DataFrame:
    """A table of makers as `plots.accuracy_against_distance` takes it; makers that diverged are left out."""
    points = table.dropna(subset=["Fréchet distance"]).rename(columns={"student (%)": "accuracy"})
    ends = points["95 % interval"].astype(str).str.split(" – ", expand=True)
    ends = ends.reindex(columns=[0, 1]).astype(float)
    return points.assign(**{"accuracy low": ends[0], "accuracy high": ends[1]})


def nearest_real(study: Study, images: ImageSet, count: int = 6, neighbours: int = 5):
    """The first `count` made images with their nearest real training images, to see whether they are copies.

    Returns:
        (uint8 (count, C, S, S), uint8 (count, neighbours, C, S, S), distances (count, neighbours)).
    """
    chosen = images.subset(range(count))
    mine = study.space.of(chosen.images, chosen.labels).values
    reference = synthesis.open_features(study.reference).values
    distances, places = metrics.nearest(mine, reference, neighbours)
    real = study.train_set.sample(study.config.feature.fid_images)
    return chosen.images, real.images[places.flatten()].unflatten(0, places.shape), distances
