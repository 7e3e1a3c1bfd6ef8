"""Detection distillation from one configuration: scenes, teacher, class probes, GANs and students, by key."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path

import torch

from dfkd_lib import training
from dfkd_lib.core import Artifact, Store, WorkbenchError, ledger, one_of
from dfkd_lib.datasets import GENERATED, SceneConfig, Scenes, check_classes_agree
from dfkd_lib.detection.aligned import check_shareable
from dfkd_lib.detection.config import ARMS, DRAWN, VARIANTS, DetectionConfig
from dfkd_lib.detection.detector import (
    FOLDER,
    check_weights,
    load_detector,
    predict,
    predictions,
    save_predictions,
    shipped_detector,
    train,
)
from dfkd_lib.detection.layouts import layout_statistics
from dfkd_lib.detection.measure import measure_scenes
from dfkd_lib.detection.probes import check_objects
from dfkd_lib.detection.scene_gan import SceneGAN, check_side, object_probe_artifact
from dfkd_lib.detection.step import FEATURES, MATCHED, SHARED, detection_step
from dfkd_lib.detection.tiles import predict_tiled
from dfkd_lib.metrics import calibration_error, fit_scaling, judged
from dfkd_lib.models import REALTIME


class DetectionStudy:
    """What a configuration asks for, each part made or found in a store when it is first used."""

    def __init__(self, store: Store, config: DetectionConfig):
        self.store, self.config = store, config

    def scenes(self, split: str, square: bool = False) -> Scenes:
        """The scenes of split "train", "test" or "synthetic"; square ones are what GANs learn, draw and are measured on."""
        data = self.config.data.replace(seed=self.config.seed)
        return (data.replace(shortest=0) if square else data).scenes(split)

    @cached_property
    def teacher(self) -> Artifact:
        """The teacher: shipped, or trained on the labelled training scenes by the library's step; WorkbenchError if it is to
        start from the shipped detector, but has another shape."""
        config, test, start = self.config.teacher, self.scenes("test"), None
        if config.source == "shipped":
            return shipped_detector(self.store, config.shipped, test)
        if self.config.from_generated:
            # On generated test scenes as the shipped teacher knows them.
            known = SceneConfig(size=80, test_scenes=300).scenes("test")
            self._check_shape()
            start = shipped_detector(self.store, config.shipped, known)
        # What distils into students must not make another teacher.
        none = dict.fromkeys((*MATCHED, *FEATURES, *SHARED), 0.0)
        weights = self.config.losses.replace(**none, temperature=1.0, general=1)
        step, scenes = detection_step(weights), self.scenes("train")
        own = {"seed": self.config.seed, "start": start, "empty": self.empty}
        return train(self.store, config, step, scenes, test, **own)

    @cached_property
    def empty(self) -> Scenes | None:
        """Windows of empty ground of a folder's training frames, which detectors of these frames learn; None: not asked for."""
        return self.scenes("empty") if self.config.data.cropped and self.config.data.empty else None

    @cached_property
    def probes(self) -> Artifact:
        """The class probes of the teacher's objects in the training scenes."""
        return object_probe_artifact(self.store, self.scenes("train", True), self.teacher)

    def gan(self, gan: SceneGAN, seed: int | None = None) -> Artifact:
        """A GAN trained on the training scenes, from a seed, the first of `seeds` by default."""
        seed = self.config.seeds[0] if seed is None else seed
        scenes = self.scenes("train", True)
        return gan.replace(seed=seed).train(self.store, scenes, self.teacher, self.probes)

    def drawn(self, gan: SceneGAN, seed: int | None = None, layouts: bool = False) -> Artifact:
        """The scenes that this GAN draws for a student, of the training scenes' layouts or after the teacher's `layouts`."""
        trained = self.gan(gan, seed)
        count = self.config.gan_scenes or trained.metrics["train_scenes"]
        statistics = self.layouts(self.scenes("train", True)) if layouts else None
        return gan.draw(self.store, trained, count, self.config.seed, statistics)

    def layouts(self, scenes: Scenes | None) -> Artifact:
        """The statistics of what the teacher finds in these scenes, or, shown none, in noise."""
        return layout_statistics(self.store, self.teacher, scenes, self.config.data.size)

    def inverted(self) -> Artifact:
        """Scenes inverted from the teacher, behind which no image stands but those of the teacher's own training."""
        config = self.config
        asked = config.data.size, config.inverted_scenes, config.seed
        own = self.teacher, self.layouts(None), config.losses
        return config.inversion.draw(self.store, *own, *asked)

    def measured(self, drawn: Artifact | None, judge: Artifact) -> Artifact:
        """Measures of drawn scenes, or of the real test scenes (None), in the features of a judge."""
        splits = (self.scenes(split, True) for split in ("train", "test"))
        return measure_scenes(self.store, drawn, self.teacher, judge, self.probes, *splits)

    def student(
        self,
        variant: str,
        step: Callable | None = None,
        gan: SceneGAN | None = None,
        seed: int | None = None,
    ) -> Artifact:
        """A student by its short name in `VARIANTS`, trained by the library's step or one of the caller's; see `train`.

        Args:
            gan: the attention GAN in place of the configuration's.
            seed: of the student alone, in place of the configuration's.
        """
        one_of("student", variant, VARIANTS)
        config, teacher = self.config, None if variant == "plain" else self.teacher
        weights = config.losses.aligned if variant == "aligned" else config.losses
        labelled = variant in ARMS
        if labelled:
            scenes = self.scenes("train")
        elif variant == "generated":
            scenes = self.scenes("synthetic")
        elif variant == "inverted":
            scenes = self.inverted()
        else:
            gan = gan or config.gan
            gan = gan.replace(lam=0.0) if variant == "vanilla" else gan
            scenes = self.drawn(gan, layouts=variant == "layouts")
        step, test = step or detection_step(weights), self.scenes("test")
        start = self.start(teacher, step, variant)
        seed = config.seed if seed is None else seed
        own = (config.student, step, scenes, test, teacher, seed, start)
        more = {"empty": self.empty if labelled else None, "shared": teacher and weights.shared}
        return train(self.store, *own, **more)

    def start(
        self, teacher: Artifact | None, step: Callable, variant: str = "train"
    ) -> Artifact | None:
        """What a student starts from: nothing, or one of its shape that learned the generated scenes, from the shipped
        teacher too, as that variant does, unless it never has a teacher."""
        if not self.config.from_generated:
            return None
        same = "aligned" if variant == "aligned" else "train"
        return self._before().student(same if teacher else "plain", step)

    def _before(self, students: str = "") -> "DetectionStudy":
        """The study of generated scenes whose students those of a folder start from."""
        own = self.config.data
        sizes = {name: own[name] for name in ("size", "train_scenes", "test_scenes")}
        like = self.config.replace(data=SceneConfig(**sizes), start="nothing", students=students)
        like = like.override({"teacher.source": "shipped", "student.augment": 0.0})
        return DetectionStudy(self.store, like)

    def _check_shape(self) -> None:
        """WorkbenchError unless the teacher has the shape of the shipped detector that it is to start from."""
        shipped, _ = self._shipped()
        if shipped != self.config.teacher.model:
            raise WorkbenchError(
                "the teacher cannot start from the shipped detector, which has another shape",
                expected=shipped,
                got=self.config.teacher.model,
                where="teacher.model",
                fix=f"give teacher.model={shipped}, or start=nothing",
            )

    @property
    def without_gans(self) -> WorkbenchError | None:
        """Why no GAN can learn here: its teacher has no map of attention over the image, which measures of drawn scenes need
        too, or scenes are of another side; None: GANs can."""
        model, side = self.teacher_model, self.config.data.size
        if model in REALTIME:
            return WorkbenchError(
                "the GANs cannot be guided by deformable attention, which has no map over the image",
                expected="a DETR or Conditional DETR as teacher",
                got=model,
                where="the teacher",
                fix=f"leave out {', '.join(DRAWN)} (students=plain,train,inverted), or give teacher=train "
                f"teacher.model=detr_micro; a student may be a {model} (student.model)",
            )
        try:
            check_side(side, side)
        except WorkbenchError as error:
            return error
        return None

    def _shipped(self) -> tuple[str, list[str]]:
        """The model of the shipped detector, and its classes, by its record."""
        record = training.read_shipped(self.config.teacher.shipped, FOLDER)[1]
        return record["model"], record["metrics"]["classes"]

    @property
    def teacher_model(self) -> str:
        """The teacher's model, known before there is a teacher."""
        config = self.config.teacher
        return config.model if config.source == "train" else self._shipped()[0]

    def check(self, gans: bool = False) -> None:
        """WorkbenchError on what forbids the students asked for, as far as configuration and scenes tell: now, not after the
        teacher's training.

        Args:
            gans: GANs are trained whatever students are asked for, unless there is a reason `without_gans`.
        """
        config, reason = self.config, self.without_gans
        if config.drawn and reason:
            raise reason
        if config.losses.shared is not None or "aligned" in config.variants:
            check_shareable(self.teacher_model, config.student.model)
        if config.from_generated:
            if config.teacher.source == "train":
                self._check_shape()
            alike = (name if name in ("plain", "aligned") else "train" for name in config.variants)
            self._before(",".join(dict.fromkeys(alike))).check()
        self._check_classes()
        check_weights(config.student, self.scenes("test").classes)
        if config.data.name != GENERATED and (config.drawn or (gans and not reason)):
            check_objects(self.scenes("train", True).load())
        if "generated" in config.variants:
            self._check_generated()

    def _check_classes(self) -> None:
        """WorkbenchError unless training and test scenes, and a shipped teacher, know the same classes."""
        name, train, test = self.config.data.name, self.scenes("train"), self.scenes("test")
        check_classes_agree(train.classes, test.classes, f"the training and test scenes, {name}")
        if self.config.teacher.source == "shipped":
            where = f"the shipped {self.config.teacher.shipped} and the test scenes"
            check_classes_agree(self._shipped()[1], test.classes, where)

    def _check_generated(self) -> None:
        """WorkbenchError unless generated scenes, of which a student may learn alone, have the test scenes' classes."""
        generated, known = self.scenes("synthetic").classes, self.scenes("test").classes
        if generated != known:
            raise WorkbenchError(
                "a student of the generated scenes would not know these scenes' classes",
                expected=", ".join(generated),
                got=", ".join(known),
                where=f"the classes of {self.config.data.name}",
                fix="name students without generated (students=plain,train)",
            )

    @cached_property
    def tile(self) -> tuple[int, ...]:
        """Sides in pixels of the windows by which whole frames are searched; none: frames are measured as they are."""
        data, sides = self.config.data, tuple(sorted(filter(None, self.config.tile)))
        if sides or not data.cropped:
            return sides if data.name != GENERATED else ()
        return (round(data.size * float(self.scenes("train").load().scale.median())),)

    @property
    def looks(self) -> tuple[float, ...]:
        """Sides of the windows of a second look, in longer sides of a detection's box: the smallest and the largest of
        those cut about objects in training; none without one, or where nothing was cut."""
        data = self.config.data
        if not (self.config.second_look and data.cropped):
            return ()
        return tuple(dict.fromkeys((data.crop / data.crop_spread, data.crop * data.crop_spread)))

    def frames(self, split: str) -> Scenes:
        """Whole frames of split "test" or "calibration", as detectors are measured on them."""
        return self.config.data.scenes(split, frames=True) if self.tile else self.scenes(split)

    def whole(self, detector: Artifact, split: str = "test") -> Artifact:
        """A detector's detections in whole frames, by tiles where it has learned crops; metrics as of a detector's artifact."""
        if not self.tile and split == "test":
            return detector
        tile, looks, size = self.tile, self.looks, self.config.data.size
        frames = self.frames(split)
        known = detector.metrics["classes"]
        check_classes_agree(known, frames.classes, f"{detector.path} and the {split} scenes")

        def make(work: Path) -> dict:
            test, finder = frames.load(), load_detector(detector)
            if tile:
                found = predict_tiled(finder, test.images, tile, size, looks)
            else:
                found = predict(finder, test.images)
            return save_predictions(work, finder, test, *found)

        own = {"model": detector.settings["model"], "tile": tile, "size": size, "looks": looks}
        settings = {**own, "test": frames.identity}
        reads = {frames.split: ledger.EVALUATION}
        return self.store.get_or_make("whole_frames", settings, make, [detector], reads)

    def calibrated(self, detector: Artifact) -> Artifact:
        """The scaling of a detector's scores that is fitted on the calibration scenes, which neither train nor test: metrics
        "temperature", "shift", and on the test scenes "ECE" and "ECE_scaled"; see `metrics.Scaling`."""
        parts = [(self.frames(one), self.whole(detector, one)) for one in ("calibration", "test")]

        def make(work: Path) -> dict:
            fitted, tested = (judged(scenes.load(), *predictions(found)) for scenes, found in parts)
            scaling = fit_scaling(*fitted)
            scaled = scaling(torch.from_numpy(tested[0])).numpy()
            errors = calibration_error(*tested), calibration_error(scaled, tested[1])
            return {**scaling._asdict(), **dict(zip(("ECE", "ECE_scaled"), errors, strict=True))}

        purposes = ("calibration", ledger.EVALUATION)
        reads = {scenes.split: why for (scenes, _), why in zip(parts, purposes, strict=True)}
        settings = {"scenes": [scenes.identity for scenes, _ in parts]}
        parents = [found for _, found in parts]
        return self.store.get_or_make("calibration", settings, make, parents, reads)


def tasks(names: Mapping[str, object]) -> dict[str, Callable[[], object]]:
    """Notebook 40's students and GANs, the scenes they draw and what these measure, as `distill.tasks` gives them."""
    study, step = names["study"], names["step"]
    gans = {} if study.without_gans else names["gans"]  # without them nothing is measured either
    config, guided = study.config, gans.get("attention GAN")
    steps = dict.fromkeys(VARIANTS, step) | {"aligned": names["aligned_step"]}

    def measured(draw: Callable[[], Artifact]) -> Artifact:
        return study.measured(draw(), study.student("plain", step))

    made: dict[str, Callable[[], object]] = {}
    judge = ("plain",) if gans else ()
    for variant in dict.fromkeys((*judge, *config.variants)):
        own = partial(study.student, variant, steps[variant], guided)
        made[f"student, {VARIANTS[variant]}"] = own
    for variant in config.compared:
        for seed in config.seeds:
            if seed != config.seed:
                own = partial(study.student, variant, steps[variant], seed=seed)
                made[f"student, {VARIANTS[variant]}, seed {seed}"] = own
    for name, gan in gans.items():
        for seed in config.seeds:
            made[f"{name}, seed {seed}"] = partial(measured, partial(study.drawn, gan, seed))
    if gans and "layouts" in config.variants:
        made["layouts"] = partial(measured, partial(study.drawn, guided, layouts=True))
    if "inverted" in config.variants:
        made["inversion"] = partial(measured, study.inverted) if gans else study.inverted
    return made
