"""Detection distillation from one configuration: scenes, teacher, class probes, GANs and students, by key."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from dfkd_lib.core import Artifact, Store, WorkbenchError, artifacts, ledger
from dfkd_lib.datasets import GENERATED, SceneConfig, Scenes, load_coco
from dfkd_lib.detection.config import VARIANTS, DetectionConfig
from dfkd_lib.detection.detector import PREDICTIONS, load_detector, train
from dfkd_lib.detection.measure import measure_scenes
from dfkd_lib.detection.scene_gan import SceneGAN, check_side, object_probe_artifact
from dfkd_lib.detection.shipped import shipped_detector
from dfkd_lib.detection.step import detection_step
from dfkd_lib.detection.tiles import predict_tiled
from dfkd_lib.metrics import average_precision


class DetectionStudy:
    """What a configuration asks for, each part made or found by its key when it is first used.

    Args:
        store: where everything is kept.
        config: the settings.
    """

    def __init__(self, store: Store, config: DetectionConfig):
        self.store, self.config = store, config

    def scenes(self, split: str, square: bool = False) -> Scenes:
        """The scenes of split "train", "test" or "synthetic"; square ones are what GANs learn, draw and are measured on."""
        data = self.config.data.replace(seed=self.config.seed)
        return (data.replace(shortest=0) if square else data).scenes(split)

    @cached_property
    def teacher(self) -> Artifact:
        """The teacher: shipped, or trained on the labelled training scenes by the library's step.

        Raises:
            WorkbenchError: if it is to start from the shipped detector, but has another shape.
        """
        config, test, start = self.config.teacher, self.scenes("test"), None
        if config.source == "shipped":
            return shipped_detector(self.store, config.shipped, test)
        if self.config.from_generated:
            start = shipped_detector(self.store, config.shipped, _generated_test())
            if start.settings["model"] != config.model:
                raise WorkbenchError(
                    "the teacher cannot start from the shipped detector, which has another shape",
                    expected=start.settings["model"],
                    got=config.model,
                    where="teacher.model",
                    fix=f"give teacher.model={start.settings['model']}, or start=nothing",
                )
        step, scenes = detection_step(self.config.losses), self.scenes("train")
        return train(self.store, config, step, scenes, test, seed=self.config.seed, start=start)

    @cached_property
    def probes(self) -> Artifact:
        """The class probes of the teacher's objects in the training scenes."""
        return object_probe_artifact(self.store, self.scenes("train", True), self.teacher)

    def gan(self, gan: SceneGAN, seed: int | None = None) -> Artifact:
        """A GAN trained on the training scenes, from a seed, the first of `seeds` by default."""
        seed = self.config.seeds[0] if seed is None else seed
        scenes = self.scenes("train", True)
        return gan.replace(seed=seed).train(self.store, scenes, self.teacher, self.probes)

    def drawn(self, gan: SceneGAN, seed: int | None = None) -> Artifact:
        """The scenes that this GAN draws for a student."""
        trained = self.gan(gan, seed)
        count = self.config.gan_scenes or trained.metrics["train_scenes"]
        return gan.draw(self.store, trained, count, self.config.seed)

    def measured(self, drawn: Artifact | None, judge: Artifact) -> Artifact:
        """Measures of drawn scenes, or of the real test scenes (None), in the features of a judge."""
        splits = (self.scenes(split, True) for split in ("train", "test"))
        return measure_scenes(self.store, drawn, self.teacher, judge, self.probes, *splits)

    def learns_from(self, variant: str) -> tuple[Scenes | Artifact, Artifact | None]:
        """The scenes and the teacher of a student, by a short name in `VARIANTS`; WorkbenchError if there is none."""
        if variant not in VARIANTS:
            raise WorkbenchError(
                "no such student",
                expected=", ".join(VARIANTS),
                got=variant,
                where="students",
                fix="name students separated by commas",
            )
        if variant in ("train", "plain"):
            return self.scenes("train"), self.teacher if variant == "train" else None
        if variant == "generated":
            return self.scenes("synthetic"), self.teacher
        gan = self.config.gan
        return self.drawn(gan if variant == "synthetic" else gan.replace(lam=0.0)), self.teacher

    def student(self, variant: str, step: Callable | None = None) -> Artifact:
        """A student by its short name, trained by the library's step or one of the caller's; see `train`."""
        config, (scenes, teacher) = self.config, self.learns_from(variant)
        step = step or detection_step(config.losses)
        start, test = self.start(teacher, step), self.scenes("test")
        return train(
            self.store, config.student, step, scenes, test, teacher, seed=config.seed, start=start
        )

    def start(self, teacher: Artifact | None, step: Callable) -> Artifact | None:
        """What a student starts from: nothing, or one of its shape that learned the generated scenes, from the shipped
        teacher too unless it never has a teacher."""
        if not self.config.from_generated:
            return None
        own = self.config.data
        sizes = {name: own[name] for name in ("size", "train_scenes", "test_scenes")}
        like = self.config.replace(data=SceneConfig(**sizes), start="nothing")
        like = like.override({"teacher.source": "shipped", "student.augment": 0.0})
        return DetectionStudy(self.store, like).student("train" if teacher else "plain", step)

    def check(self) -> None:
        """Ask now what would stop the notebook only after the teacher's training.

        Raises:
            WorkbenchError: if the GANs cannot draw scenes of this size, or a class has no object to learn from.
        """
        data = self.config.data
        check_side(data.size, data.size)
        if data.name == GENERATED:
            return
        counts = self.scenes("train", True).load().counts()
        empty = [name for name, count in counts.items() if not count]
        if empty:
            raise WorkbenchError(
                "a class has no object in the training scenes",
                expected="at least one of each class",
                got=f"none of {', '.join(empty)}",
                where=data.name,
                fix="leave it out of 'categories' in all splits, add objects, or cut more crops a frame",
            )

    def tiled(self, detector: Artifact) -> Artifact:
        """A detector's detections in whole test frames of a folder, by tiles; metrics as of a detector's artifact."""
        data, tile = self.config.data, self.config.tile
        frames = SceneConfig(name=data.name, size=80, shortest=0).scenes("test")

        def make(work: Path) -> dict:
            test = load_coco(data.name, "test")
            scores, boxes = predict_tiled(load_detector(detector), test.images, tile, data.size)
            artifacts.save_tensors(work / PREDICTIONS, {"scores": scores, "boxes": boxes})
            found = average_precision(test, scores, boxes, by_size=True)
            parameters, classes = detector.metrics["parameters"], list(test.classes)
            return {**found, "parameters": parameters, "test_scenes": len(test), "classes": classes}

        settings = {"model": detector.settings["model"], "tile": tile, "size": data.size}
        settings["test"] = frames.identity
        reads = {frames.split: ledger.EVALUATION}
        return self.store.get_or_make("tiled_detections", settings, make, [detector], reads)


def _generated_test() -> Scenes:
    """Generated test scenes as the shipped teacher knows them."""
    return SceneConfig(size=80, test_scenes=300).scenes("test")
