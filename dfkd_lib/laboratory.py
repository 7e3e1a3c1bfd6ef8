"""The bench of image makers: each by its data budget, the same count, the same measures, the same student (METHODS D)."""

import time
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

from dfkd_lib import distill, metrics, synthesis
from dfkd_lib.core import WorkbenchError, ledger, processes
from dfkd_lib.core.artifacts import Artifact, Store, provenance, resolve, save_json
from dfkd_lib.datasets import ImageSet
from dfkd_lib.metrics import intervals
from dfkd_lib.recipes import ClassificationRecipe
from dfkd_lib.synthesis import Given, GuidedGenerator, Inversion, Maker
from dfkd_lib.training import DivergedError, TrainConfig

# What each maker may see; the order is the order of every table and figure.
MAKERS = {
    "vanilla GAN": "1: real images",
    "augmented GAN": "1: real images and class probes",
    "class probes": "2: class probes",
    "inversion (CNN)": "3a: nothing but a CNN teacher",
    "inversion (ViT)": "3b: nothing but the teacher",
    "adversarial": "3c: nothing but the teacher",
}
# Of the bench's table, also where every maker has diverged.
COLUMNS = [
    "maker",
    "may see",
    "real images read",
    "images made",
    "images measured",
    "Fréchet distance",
    "low",
    "high",
    "KID",
    "KID std",
    "precision",
    "recall",
    "density",
    "coverage",
    "score",
    "student (%)",
    "95 % interval",
    "seconds",
]
MOST_EPOCHS = (
    100  # of a student: more passes over the few images of an inversion only teach it these
)


@dataclass(frozen=True)
class MakerRecipe(ClassificationRecipe):
    """`ClassificationRecipe` with the makers that see less, as plain scalars.

    Args:
        claim_images: real images of the equal-epoch comparison (both GANs from many seeds), 0: train_images.
        makers: comma-separated names out of `MAKERS`. maker_images: made by each, and behind each student.
        generators: trained one after another by the makers "class probes" and "adversarial", maker_steps steps of
            maker_batch images each at learning rate maker_lr. probe_weight, adversarial_weight, tv_weight,
            ink_weight, diversity_weight, intra_weight: of their losses, see `GuidedGenerator`; texture likewise.
        inversion_*, batch_norm_weight, entropy_weight: of both inversions, see `Inversion`.
        rival_model: the student that the maker "adversarial" looks for disagreement with, "": student_model.
        background: the value of an empty pixel, -1..1.
    """

    claim_images: int = 4000
    makers: str = ", ".join(MAKERS)
    maker_images: int = 30_000
    generators: int = 48
    maker_steps: int = 40
    maker_batch: int = 64
    maker_lr: float = 3e-3
    maker_precision: str = "fp32"
    probe_weight: float = 1.0
    adversarial_weight: float = 0.2
    rival_model: str = ""
    tv_weight: float = 0.0
    ink_weight: float = 2.0
    diversity_weight: float = 1.0
    intra_weight: float = 0.0
    texture: float = 1.0
    background: float = -1.0
    inversion_images: int = 256
    inversion_steps: int = 150
    inversion_batch: int = 128
    inversion_lr: float = 0.05
    inversion_tv: float = 1.0
    inversion_l2: float = 0.5
    batch_norm_weight: float = 1.0
    entropy_weight: float = 0.1

    @property
    def names(self) -> list[str]:
        """The makers to compare, in the order of `MAKERS`; WorkbenchError on a name that is none."""
        asked = [name.strip() for name in self.makers.split(",") if name.strip()]
        unknown = sorted(set(asked) - set(MAKERS))
        if unknown or not asked:
            raise WorkbenchError(
                "no such maker of images",
                expected=", ".join(MAKERS),
                got=", ".join(unknown) or "none",
                where="makers",
                fix="name makers from the list, comma-separated",
            )
        return [name for name in MAKERS if name in asked]

    @cached_property
    def claim_set(self) -> ImageSet:
        """The real images that both GANs of the equal-epoch comparison see."""
        return self.train_set.sample(self.claim_images or len(self.train_set))

    def cnn_teacher(self, store: Store) -> Artifact:
        """The CNN that "inversion (CNN)" inverts: not the one that judges, which would flatter it."""
        config = TrainConfig(
            epochs=self.feature_epochs,
            batch_size=128,
            lr=2e-3,
            weight_decay=0.01,
            warmup_epochs=0.2,
            precision="bf16",
            seed=1,
        )
        return distill.train_teacher(
            store,
            self.feature_model,
            self.full_train.sample(self.feature_images, 4),
            self.test_set,
            config,
        )

    def maker(self, name: str) -> Maker:
        """The maker of that name with the recipe's settings."""
        if name.endswith("GAN"):
            return self.gan_maker(0.0 if name.startswith("vanilla") else self.lam)
        if name.startswith("inversion"):
            weights = (
                {"batch_norm": self.batch_norm_weight}
                if "CNN" in name
                else {"patch_entropy": self.entropy_weight}
            )
            return Inversion(
                steps=self.inversion_steps,
                batch_size=self.inversion_batch,
                lr=self.inversion_lr,
                tv=self.inversion_tv,
                l2=self.inversion_l2,
                background=self.background,
                intra=self.intra_weight,
                **weights,
            )
        config = TrainConfig(
            epochs=self.generators,
            batch_size=self.maker_batch,
            lr=self.maker_lr,
            optimizer="adam",
            betas=(0.5, 0.999),
            schedule="constant",
            grad_clip=5.0,
            precision=self.maker_precision,
            seed=self.seed,
        )
        extra = (
            {"attention": self.probe_weight}
            if name == "class probes"
            else {
                "adversarial": self.adversarial_weight,
                "student_model": self.rival_model or self.student_model,
            }
        )
        return GuidedGenerator(
            config=config,
            steps=self.maker_steps,
            tv=self.tv_weight,
            ink=self.ink_weight,
            diversity=self.diversity_weight,
            intra=self.intra_weight,
            texture=self.texture,
            background=self.background,
            **extra,
        )

    def given_to(self, store: Store, name: str) -> Given:
        """What that maker is given, and no more: its budget."""
        if name.endswith("GAN"):
            return self.given(store)
        teacher = self.cnn_teacher(store) if "CNN" in name else self.teacher_artifact(store)
        probes = (
            synthesis.class_probes(store, teacher, self.train_set)
            if name == "class probes"
            else None
        )
        return Given(teacher, self.test_set.classes, self.test_set.shape, probes)

    def images(self, store: Store, name: str) -> tuple[ImageSet, Artifact]:
        """The images of that maker, from `seed`."""
        count = self.inversion_images if name.startswith("inversion") else self.maker_images
        return synthesis.make_images(
            store, self.maker(name), self.given_to(store, name), count, self.seed + 1000
        )

    def reference(self, store: Store, space) -> Artifact:
        """Features of the real images that distances are taken to: at most `fid_images` of the training set."""
        return synthesis.real_features(store, self.train_set.sample(self.fid_images), space)

    def measures(
        self, store: Store, images: ImageSet, kept: Artifact, space, rounds: int = 100
    ) -> Artifact:
        """All measures of made images, see `synthesis.measure_images`."""
        return synthesis.measure_images(
            store, images, kept, self.reference(store, space), space, self.fid_images, rounds
        )

    def training_images(self, store: Store, source: str) -> tuple[ImageSet, list[Artifact]]:
        """As in `ClassificationRecipe`, and from every maker by its name in `MAKERS`."""
        if source not in MAKERS:
            return super().training_images(store, source)
        count = self.inversion_images if source.startswith("inversion") else self.synthetic_images
        images, kept = synthesis.make_images(
            store, self.maker(source), self.given_to(store, source), count, self.seed + 1000
        )
        return images, [kept]

    def student_of(self, store: Store, images: ImageSet, kept: Artifact) -> Artifact:
        """A student trained on these images alone by Algorithm 1, for as many steps whatever their number, but for at
        most 100 epochs."""
        epochs = round(
            self.student_epochs
            * self.maker_images
            / min(self.student_images or len(images), len(images))
        )
        config = self.student_config(
            epochs=min(max(1, epochs), max(MOST_EPOCHS, self.student_epochs))
        )
        return self.distilled(store, images, [kept], config)

    def bench(self, store: Store, space) -> dict[str, dict]:
        """Every maker's "images", "kept", "measures", "student", "diverged" ("" or what happened), by name.

        A maker that diverges before it has a good state, or whose student does, is left out but for "diverged": the others
        are not lost.
        """
        found = {}
        for name in self.names:
            try:
                found[name] = self._one(store, name, space)
            except DivergedError as error:
                found[name] = {"diverged": str(error)}
        return found

    def _one(self, store: Store, name: str, space) -> dict:
        images, kept = self.images(store, name)
        trained = self.maker(name).train(store, self.given_to(store, name))
        return {
            "images": images,
            "kept": kept,
            "measures": self.measures(store, images, kept, space),
            "student": self.student_of(store, images, kept),
            "trained": trained,
            "diverged": trained.metrics["stopped"] if trained else "",
        }

    def equal_epochs(self, store: Store, seeds: list[int], space) -> dict[str, list[dict]]:
        """Table 2's claim: both GANs from each seed, {arm: [{"trained", "measures", "curve"} for each seed]}."""
        given, reference, found = (
            replace(self.given(store), real=self.claim_set),
            self.reference(store, space),
            {},
        )
        for arm, lam in (("vanilla", 0.0), ("augmented", self.lam)):
            found[arm] = []
            for seed in seeds:
                maker = self.gan_maker(lam, seed)
                trained = maker.train(store, given)
                images, kept = synthesis.make_images(
                    store, maker, given, self.fid_images, seed + 1000
                )
                found[arm].append(
                    {
                        "trained": trained,
                        "measures": self.measures(store, images, kept, space, rounds=0),
                        "curve": synthesis.distance_curve(
                            store, maker, trained, given, reference, space
                        ),
                    }
                )
        return found


def real_images_read(store: Store, kept: Artifact, teacher: str) -> dict[str, int]:
    """Real images behind made ones, by purpose: the most that one stage read, evaluation and the teacher's own left out.

    Args:
        kept: the artifact of the images. teacher: key of the teacher, whose training images are another account.
    """
    counts: dict[str, int] = {}
    waiting, known = [kept.key], {teacher}
    while waiting:
        key = waiting.pop()
        if key in known:
            continue
        known.add(key)
        found = store.find(key)
        waiting += found.parents
        for row in found.ledger:
            if row["purpose"] != ledger.EVALUATION:
                counts[row["purpose"]] = max(counts.get(row["purpose"], 0), row["images"])
    return counts


def bench_table(store: Store, found: dict[str, dict], recipe: MakerRecipe):
    """The table that matters: maker × real images seen × distance × accuracy of a student trained on its images alone.

    Args:
        found: of `MakerRecipe.bench`.

    Returns:
        A DataFrame; intervals are those of the samples: 95 %, images resampled, test images by Wilson.
    """
    import pandas as pd

    rows = []
    for name, part in found.items():
        row = {"maker": name, "may see": MAKERS[name]}
        if "kept" not in part:
            rows.append(row | {"real images read": "diverged"})
            continue
        teacher = recipe.given_to(store, name).teacher.key
        read = real_images_read(store, part["kept"], teacher)
        told, student, total = part["measures"].metrics, part["student"], len(recipe.test_set)
        low, high = intervals.accuracy_interval(round(student.metrics["accuracy"] * total), total)
        rows.append(
            row
            | {
                "real images read": "; ".join(
                    f"{count:,} ({purpose})" for purpose, count in read.items()
                )
                or "0",
                "images made": part["kept"].metrics["images"],
                "images measured": told["images"],
                "Fréchet distance": told["frechet"],
                "low": told["low"],
                "high": told["high"],
                "KID": told["kid"],
                "KID std": told["kid_std"],
                "precision": told["precision"],
                "recall": told["recall"],
                "density": told["density"],
                "coverage": told["coverage"],
                "score": told["score"],
                "student (%)": 100 * student.metrics["accuracy"],
                "95 % interval": f"{100 * low:.2f} – {100 * high:.2f}",
                "seconds": round(
                    part["kept"].seconds + (part["trained"].seconds if part["trained"] else 0), 1
                ),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def short_table(table):
    """The columns of a bench table to read first, narrow enough for a page: what was seen, the distance, the student."""
    import pandas as pd

    def told(row) -> str:
        return (
            "–"
            if pd.isna(row["Fréchet distance"])
            else f"{row['Fréchet distance']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
        )

    short = table[["maker", "may see", "real images read"]].assign(
        images=table["images made"].astype("Int64"),
        **{"Fréchet distance [95 %]": table.apply(told, axis=1)},
    )
    students = table["student (%)"].map("{:.2f}".format, na_action="ignore")
    return (
        short.assign(**{"student (%)": students, "[95 %]": table["95 % interval"]})
        .astype(object)
        .fillna("–")
    )


def warnings_table(found: dict[str, dict]):
    """What makes a maker's row doubtful: a DataFrame of maker and warning, divergence first; empty if nothing does."""
    import pandas as pd

    said = [
        (name, text)
        for name, part in found.items()
        for text in [
            *([part["diverged"]] if part["diverged"] else []),
            *(part["measures"].metrics["warnings"] if "measures" in part else []),
        ]
    ]
    return pd.DataFrame(said, columns=["maker", "take care"])


def accuracy_points(table):
    """A bench table as `plots.accuracy_against_distance` takes it; makers that diverged are left out."""
    points = table.dropna(subset=["Fréchet distance"]).rename(columns={"student (%)": "accuracy"})
    ends = (
        points["95 % interval"]
        .astype(str)
        .str.split(" – ", expand=True)
        .reindex(columns=[0, 1])
        .astype(float)
    )
    return points.assign(**{"accuracy low": ends[0], "accuracy high": ends[1]})


def nearest_real(
    store: Store, images: ImageSet, recipe: MakerRecipe, space, count: int = 6, neighbours: int = 5
):
    """The first `count` made images with their nearest real training images, to see whether they are copies.

    Returns:
        (uint8 (count, C, S, S), uint8 (count, neighbours, C, S, S), distances (count, neighbours)).
    """
    chosen = images.subset(range(count))
    mine = space.of(chosen.images, chosen.labels).values
    distances, places = metrics.nearest(
        mine, synthesis.open_features(recipe.reference(store, space)).values, neighbours
    )
    real = recipe.train_set.sample(recipe.fid_images)
    return chosen.images, real.images[places.flatten()].unflatten(0, places.shape), distances


def _setting(word: str) -> tuple[str, object]:
    """A word `name=value` as a setting of `MakerRecipe`; WorkbenchError if it is none."""
    kinds = {field.name: type(field.default) for field in fields(MakerRecipe)}
    name, equals, text = word.partition("=")
    if not equals or name not in kinds:
        raise WorkbenchError(
            "no such setting",
            expected="name=value with a name of " + ", ".join(kinds),
            got=word,
            fix="correct the name; python -m dfkd_lib.laboratory --help",
        )
    try:
        return name, {"true": True, "false": False}[text.lower()] if kinds[name] is bool else kinds[
            name
        ](text)
    except (ValueError, OverflowError, KeyError):
        raise WorkbenchError(
            f"the setting '{name}' has the wrong type",
            expected=kinds[name].__name__,
            got=text,
            fix=f"give {name} a value of that kind",
        ) from None


def main(arguments: list[str]) -> None:
    """The bench without a notebook, for long runs: every maker's row into OUT/makers.csv and OUT/results.json.

    Under `accelerate launch` or torchrun all processes train together, and the main one writes.
    """
    import argparse

    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.laboratory", description=main.__doc__)
    parser.add_argument(
        "--out", default="reports/makers", help="folder for makers.csv and results.json"
    )
    parser.add_argument(
        "--artifacts", default="data/artifacts", help="folder of trained things, by key"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="name=value", help="settings of MakerRecipe that differ"
    )
    asked = parser.parse_args(arguments)
    recipe = MakerRecipe(**dict(map(_setting, asked.settings)))
    store, out, start = Store(asked.artifacts), resolve(asked.out), time.perf_counter()
    made_by = provenance()  # of the code that runs, whatever is committed while it does
    space = recipe.feature_space(store)
    found = recipe.bench(store, space)
    if not processes.is_main():
        return
    table = bench_table(store, found, recipe)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "makers.csv", index=False)
    save_json(
        out / "results.json",
        {
            "recipe": asdict(recipe),
            "features": space.name,
            "seconds": round(time.perf_counter() - start, 1),
            "makers": {
                name: {
                    "measures": part["measures"].metrics,
                    "student": part["student"].metrics,
                    "history": part["student"].json("history.json"),
                    "diverged": part["diverged"],
                }
                if "kept" in part
                else part
                for name, part in found.items()
            },
            "provenance": made_by,
        },
    )
    print(table.to_string(index=False))


if __name__ == "__main__":
    import sys

    try:
        main(sys.argv[1:])
    except (
        WorkbenchError
    ) as error:  # it says what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
