"""Notebook 40 as stages: the teacher, its students, from plain parameters, each made or found by its key."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from dfkd_lib.core import WorkbenchError, ledger
from dfkd_lib.core.artifacts import Artifact, Store, resolve, save_tensors
from dfkd_lib.core.config import parse_seeds
from dfkd_lib.datasets.coco import load_coco
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.detection.batches import open_scenes
from dfkd_lib.detection.curves import confusion, precision_recall_curves
from dfkd_lib.detection.distill import (
    PREDICTIONS,
    DetectionTerms,
    load_detector,
    predictions,
    shown,
    train_detector,
)
from dfkd_lib.detection.evaluate import THRESHOLD, average_precision, detections
from dfkd_lib.detection.measure import measure_scenes
from dfkd_lib.detection.shipped import shipped_detector
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.detection.synthesis import SceneGAN, check_sides, draw_scenes, object_probe_artifact
from dfkd_lib.detection.tiles import predict_tiled
from dfkd_lib.training import TrainConfig

ARMS = {
    "train": "labels + teacher",
    "plain": "labels alone",
    "synthetic": "teacher alone, attention GAN's scenes",
    "vanilla": "teacher alone, vanilla GAN's scenes",
    "generated": "teacher alone, generated scenes",
}
STARTS = ("nothing", "generated")
GANS = ("synthetic", "vanilla")  # arms whose scenes a GAN draws


@dataclass(frozen=True)
class DetectionRecipe:
    """Every parameter of detection KD as a plain scalar; the defaults are the quick profile's.

    Args:
        data, size, train_scenes, test_scenes, crop, crops, crop_spread, crop_anywhere, shortest: see `SceneSource`.
        augment: see `batches.augmented`.
        seed: of everything random.
        teacher: "shipped" (the file named by `shipped`) or "train" (teacher_model for teacher_epochs).
        pretrained, weights, backbone_weights: start that training from published weights (on disk, or downloaded), from
            a file or folder of yours, or its backbone from a file; student_pretrained, student_backbone: the students'.
        start: "generated" starts teacher and students from detectors of their shape that learned the generated scenes, the
            teacher from the one named by `shipped`: real frames are few, and a wing need not be learned twice.
        student_*, teacher_*, batch_size, precision: models and training. *_weight, temperature, pairing: the losses.
        lam, attention_share: of the attention loss of the augmented GAN. gan_*: the GANs' training and size; gan_scenes:
            that each draws for a student, 0: as many as there are training scenes; gan_seeds: the first's teach students.
    """

    data: str = "scenes"
    size: int = 80
    train_scenes: int = 5000
    test_scenes: int = 300
    crop: float = 0.0
    crops: int = 1
    crop_spread: float = 1.0
    crop_anywhere: float = 0.0
    shortest: int = 0
    augment: float = 0.0
    seed: int = 0
    teacher: str = "shipped"
    shipped: str = "detr_micro_scenes"
    teacher_model: str = "detr_micro"
    teacher_epochs: int = 18
    teacher_lr: float = 1e-3
    pretrained: bool = False
    weights: str = ""
    backbone_weights: str = ""
    student_pretrained: bool = False
    student_backbone: str = ""
    start: str = "nothing"
    student_model: str = "detr_nano"
    student_epochs: int = 8
    student_lr: float = 1e-3
    batch_size: int = 16
    precision: str = "bf16"
    student_compile: bool = False
    class_weight: float = 2.0
    box_weight: float = 100.0
    giou_weight: float = 2.0
    distillation_weight: float = 1.0
    box_distillation: float = 1.0
    attention_distillation: float = 4.0
    temperature: float = 2.0
    pairing: str = "hungarian"
    lam: float = 1.0
    attention_share: float = 0.25
    gan_epochs: int = 4
    gan_batch: int = 32
    gan_lr: float = 4e-4
    gan_width: int = 128
    gan_d_width: int = 32
    gan_scenes: int = 0
    gan_seeds: str = "0,1"

    @classmethod
    def of(cls, parameters: dict) -> "DetectionRecipe":
        """The recipe from a notebook's parameters (`globals()`), taking those it knows by name."""
        known = {f.name: type(f.default) for f in fields(cls)}
        return cls(
            **{name: kind(parameters[name]) for name, kind in known.items() if name in parameters}
        )

    @property
    def source(self) -> SceneSource:
        return SceneSource(
            self.data,
            self.size,
            self.train_scenes,
            self.test_scenes,
            self.seed,
            self.crop,
            self.shortest,
            self.crops,
            self.crop_spread,
            self.crop_anywhere,
        )

    @property
    def square(self) -> SceneSource:
        """The same scenes as squares of `size`, whatever `shortest` is: what the GANs learn, draw and are measured on."""
        return replace(self.source, shortest=0)

    @property
    def terms(self) -> DetectionTerms:
        return DetectionTerms(
            self.class_weight,
            self.box_weight,
            self.giou_weight,
            self.distillation_weight,
            self.temperature,
            self.pairing,
            self.box_distillation,
            self.attention_distillation,
        )

    def _config(self, epochs: int, lr: float) -> TrainConfig:
        return TrainConfig(
            epochs=epochs,
            batch_size=self.batch_size,
            lr=lr,
            weight_decay=1e-4,
            warmup_epochs=0.5,
            grad_clip=1.0,
            precision=self.precision,
            seed=self.seed,
        )

    def check(self) -> None:
        """Ask now what would stop the notebook only after the teacher's training.

        Raises:
            WorkbenchError: if the GANs cannot draw scenes of this size, or a class has no object to learn from.
        """
        check_sides(self.square)
        empty = (
            []
            if self.data == "scenes"
            else [name for name, count in self.square.load("train").counts().items() if not count]
        )
        if empty:
            raise WorkbenchError(
                "a class has no object in the training scenes",
                expected="at least one of each class",
                got=f"none of {', '.join(empty)}",
                where=self.data,
                fix="leave it out of 'categories' in all splits, add objects, or cut more crops a frame",
            )

    def teacher_artifact(self, store: Store) -> Artifact:
        """The teacher: shipped, or trained on the labelled training scenes."""
        if self.teacher == "shipped":
            return shipped_detector(store, self.shipped, self.source)
        if self.teacher != "train":
            raise WorkbenchError(
                "no such teacher",
                expected="shipped or train",
                got=self.teacher,
                where="teacher",
                fix="choose one of them",
            )
        config = self._config(self.teacher_epochs, self.teacher_lr)
        weights = resolve(self.weights) if self.weights else None
        if self._starts_from_generated:
            weights = shipped_detector(store, self.shipped, SceneSource())
            if weights.settings["model"] != self.teacher_model:
                raise WorkbenchError(
                    "the teacher cannot start from the shipped detector, which has another shape",
                    expected=weights.settings["model"],
                    got=self.teacher_model,
                    where="teacher_model",
                    fix=f"give teacher_model='{weights.settings['model']}', or start='nothing'",
                )
        return train_detector(
            store,
            self.teacher_model,
            self.source,
            config,
            self.terms,
            augment=self.augment,
            pretrained=self.pretrained,
            weights=weights,
            backbone_weights=resolve(self.backbone_weights) if self.backbone_weights else None,
        )

    @property
    def _starts_from_generated(self) -> bool:
        if self.start not in STARTS:
            raise WorkbenchError(
                "no such start",
                expected=" or ".join(STARTS),
                got=self.start,
                where="start",
                fix="choose one of them",
            )
        if self.start != "generated" or self.data == "scenes":
            return False
        others = [
            name
            for name in (
                "pretrained",
                "weights",
                "backbone_weights",
                "student_pretrained",
                "student_backbone",
            )
            if getattr(self, name)
        ]
        if others:
            raise WorkbenchError(
                "a detector cannot start from two kinds of weights",
                expected="start='generated' alone",
                got=f"start='generated' and {', '.join(others)}",
                where="start",
                fix="leave these out, or give start='nothing'",
            )
        return True

    def student_start(self, store: Store, arm: str) -> Artifact | None:
        """What the student of an arm starts from: one of its shape that learned the generated scenes, from the shipped
        teacher too, but for "plain", which never has a teacher."""
        if not self._starts_from_generated:
            return None
        like = replace(
            self,
            data="scenes",
            crop=0.0,
            crops=1,
            crop_spread=1.0,
            crop_anywhere=0.0,
            shortest=0,
            teacher="shipped",
            start="nothing",
            augment=0.0,
        )
        return like.student(store, "plain" if arm == "plain" else "train")

    def probes(self, store: Store) -> Artifact:
        """The class probes of the teacher's objects in the training scenes."""
        return object_probe_artifact(store, self.square, self.teacher_artifact(store))

    def gan(self, arm: str, seed: int | None = None) -> SceneGAN:
        """The GAN of an arm of `GANS`: "synthetic" with the attention loss, "vanilla" without, else the same; of the first
        of `gan_seeds` unless another seed is given."""
        if arm not in GANS:
            raise WorkbenchError(
                "no such GAN",
                expected=", ".join(GANS),
                got=arm,
                where="arm",
                fix="choose one of them",
            )
        config = TrainConfig(
            epochs=self.gan_epochs,
            batch_size=self.gan_batch,
            lr=self.gan_lr,
            optimizer="adam",
            betas=(0.5, 0.999),
            schedule="constant",
            precision=self.precision,
            seed=parse_seeds(self.gan_seeds)[0] if seed is None else seed,
        )
        return SceneGAN(
            config,
            self.lam if arm == "synthetic" else 0.0,
            self.gan_width,
            self.gan_d_width,
            attention_share=self.attention_share,
        )

    def trained_gan(self, store: Store, arm: str, seed: int | None = None) -> Artifact:
        """That GAN, trained on the training scenes."""
        return self.gan(arm, seed).train(
            store, self.square, self.teacher_artifact(store), self.probes(store)
        )

    def drawn(self, store: Store, arm: str, seed: int | None = None) -> Artifact:
        """The scenes that this GAN draws for a student; `batches.open_scenes` opens them."""
        count = self.gan_scenes or self.trained_gan(store, arm, seed).metrics["train_scenes"]
        return draw_scenes(
            store, self.gan(arm, seed), self.trained_gan(store, arm, seed), count, self.seed
        )

    def measured(self, store: Store, arm: str | None, seed: int | None = None) -> Artifact:
        """Measures of the scenes of an arm's GAN, or of the real test scenes (None); the judge is the student "plain"."""
        scenes = None if arm is None else self.drawn(store, arm, seed)
        return measure_scenes(
            store,
            scenes,
            self.teacher_artifact(store),
            self.student(store, "plain"),
            self.probes(store),
            self.square,
        )

    def student(self, store: Store, arm: str) -> Artifact:
        """The student of an arm of `ARMS`: distilled on labelled training scenes; trained on them without a teacher (what KD
        must beat); or distilled without labels on scenes of a GAN, or of the program of the generated scenes."""
        if arm not in ARMS:
            raise WorkbenchError(
                "no such arm",
                expected=", ".join(ARMS),
                got=arm,
                where="arms",
                fix="name arms separated by commas",
            )
        teacher = None if arm == "plain" else self.teacher_artifact(store)
        config = self._config(self.student_epochs, self.student_lr)
        config = config.replace(compile=self.student_compile)
        scenes = (
            self.drawn(store, arm)
            if arm in GANS
            else "synthetic"
            if arm == "generated"
            else "train"
        )
        return train_detector(
            store,
            self.student_model,
            self.source,
            config,
            self.terms,
            teacher,
            scenes,
            self.augment,
            self.student_pretrained,
            self.student_start(store, arm),
            resolve(self.student_backbone) if self.student_backbone else None,
        )

    def examples(
        self, detectors: dict[str, Artifact], count: int, threshold: float = THRESHOLD
    ) -> dict:
        """`count` test scenes with an object, evenly over the set, their true boxes and what each detector finds there with
        at least that score: the arguments of `plots.detection_compare` (A Figure 18)."""
        test = self.source.load("test")
        rows = _spread(test, count)
        found = {
            name: shown(artifact, len(test), threshold) for name, artifact in detectors.items()
        }
        return {
            "images": test.pixels[rows].numpy(),
            "classes": test.classes,
            "truth": [_truth(test, i) for i in rows],
            "found": {name: [scenes[i] for i in rows] for name, scenes in found.items()},
        }

    def curves(self, detector: Artifact) -> dict:
        """Precision over recall of a detector on the test scenes, see `curves.precision_recall_curves`."""
        return precision_recall_curves(self.source.load("test"), *predictions(detector))

    def confusion(self, detector: Artifact, threshold: float = THRESHOLD):
        """What a detector takes the test scenes' objects for, see `curves.confusion`."""
        return confusion(self.source.load("test"), *predictions(detector), threshold)

    def drawn_examples(self, store: Store, count: int) -> dict:
        """Real test scenes and what both GANs draw for the same layouts: argument of `plots.drawn_scenes`."""
        teacher, rows = load_detector(self.teacher_artifact(store)), {}
        for name, scenes in {
            "real": self.square.load("test"),
            "attention GAN": open_scenes(self.drawn(store, "synthetic")),
            "vanilla GAN": open_scenes(self.drawn(store, "vanilla")),
        }.items():
            some = scenes.subset(_spread(scenes, count))
            rows[name] = {
                "images": some.pixels.numpy(),
                "truth": [_truth(some, i) for i in range(len(some))],
                "found": detections(teacher, some),
            }
        return rows

    def tiled(self, store: Store, detector: Artifact, tile: int) -> Artifact:
        """A detector's detections in whole test frames of a COCO folder, by tiles; metrics as of a detector's artifact."""
        frames = SceneSource(self.data)

        def make(work: Path) -> dict:
            test = load_coco(self.data, "test", fill=True)
            scores, boxes = predict_tiled(load_detector(detector), test.images, tile, self.size)
            save_tensors(work / PREDICTIONS, {"scores": scores, "boxes": boxes})
            return {
                **average_precision(test, scores, boxes, by_size=True),
                "parameters": detector.metrics["parameters"],
                "test_scenes": len(test),
                "classes": list(test.classes),
            }

        settings = {
            "model": detector.settings["model"],
            "tile": tile,
            "size": self.size,
            "test": frames.identity("test"),
        }
        return store.get_or_make(
            "tiled_detections",
            settings,
            make,
            [detector],
            {frames.split("test"): ledger.EVALUATION},
        )

    def scenes(self, count: int) -> dict:
        """The first `count` training scenes and their boxes, as arguments of `plots.detection_grid`."""
        drawn = (
            replace(self.source, train=min(count, self.train_scenes))
            if self.data == "scenes"
            else self.source
        )
        train = drawn.load("train")
        rows = range(min(count, len(train)))
        truth = [_truth(train, i) for i in rows]
        return {
            "images": train.pixels[:count].numpy(),
            "classes": train.classes,
            "truth": truth,
            "found": {"true boxes": truth},
        }


def _spread(scenes: SceneSet, count: int) -> list[int]:
    """Scenes with an object, evenly over the set: neighbours are often of one video."""
    rows = [i for i, labels in enumerate(scenes.labels) if len(labels)] or [*range(len(scenes))]
    return rows[:: max(1, len(rows) // count)][:count]


def _truth(scenes: SceneSet, row: int) -> dict:
    return {"boxes": scenes.boxes[row].numpy(), "labels": scenes.labels[row].numpy()}
