"""Named sets of settings: what `smoke`, `quick`, `night` and `paper` change of each method's defaults.

A method's defaults are its paper's settings wherever the paper gives one, so `paper` changes next to nothing. `quick` is a
laptop's, `smoke` the tests', `night` the papers' sizes as far as two cores get in one night.
"""

import importlib
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

from dfkd_lib.core import Config, injected, one_of, resolve

# Method -> its configuration, "module:class"; imported when it is asked for, so that a typo is refused at once.
METHODS = {
    "start": "dfkd_lib.datasets:DataConfig",
    "attention": "dfkd_lib.distill:AttentionConfig",
    "synthesis": "dfkd_lib.distill:ClassificationConfig",
    "classification": "dfkd_lib.distill:ClassificationConfig",
    "ablation": "dfkd_lib.distill:AblationConfig",
    "detection": "dfkd_lib.detection:DetectionConfig",
    "early": "dfkd_lib.distill:EarlyConfig",
    "titn": "dfkd_lib.distill:TitnConfig",
    "deploy": "dfkd_lib.deploy:DeployConfig",
    "summary": "dfkd_lib.core:Config",
}
# Method -> what its notebook trains, task by task, "module:function"; see `distill.tasks`.
TASKS = {
    "attention": "dfkd_lib.distill.tasks:attention",
    "synthesis": "dfkd_lib.distill.tasks:synthesis",
    "classification": "dfkd_lib.distill.tasks:classification",
    "ablation": "dfkd_lib.ablation.cells:tasks",
    "detection": "dfkd_lib.detection.study:tasks",
    "early": "dfkd_lib.distill.tasks:early",
    "titn": "dfkd_lib.distill.tasks:titn",
}
PRESETS = ("smoke", "quick", "night", "paper")
# Parameters of notebooks that are no settings of their method.
NOT_SETTINGS = ("preset", "overrides", "out_dir", "artifacts_dir", "interactive")

_SMALL_GAN = {
    "gan.epochs": 4,
    "gan.batch_size": 32,
    "gan.precision": "fp32",  # models so small are slower under autocast
    "gan.lr": 1e-3,
    "gan.width": 128,
    "gan.d_width": 32,
    "gan.dropout": 0.1,
}
_QUICK = {
    "teacher.source": "shipped",
    "teacher.model": "vit_mnist_small",
    "teacher.epochs": 10,
    # Both GANs of the claim are the makers' too: no image of them is made twice.
    "train_images": 8_000,
    **_SMALL_GAN,
    "gan.epochs": 3,
    "gan.attention_share": 0.25,
    "feature.images": 20_000,
    "feature.epochs": 2,
    "feature.fid_images": 5000,
    "student.model": "vit_mnist_mini_patch7",
    "student.epochs": 5,
    "student.lr": 4e-3,
    "student.betas": (0.8, 0.95),
    "student.batch_size": 48,
    "student.precision": "fp32",
    # An image costs its teacher's targets, three times a pass of the student.
    "real_images": 40_000,
    "synthetic_images": 40_000,
    # Left to the longer presets: what is worth nothing at a size of minutes.
    "teacher_synthetic_epochs": 0,
    "makers": "augmented GAN,class probes,adversarial",
    "maker_images": 40_000,
    "guided.epochs": 48,
    "guided.steps": 30,
    "guided.batch_size": 48,
    "guided.precision": "fp32",
    # Shapes bent further than the teacher still knows them for certain teach more than ever the same.
    "guided.drawn_texture": 0.5,
    "guided.drawn_bend": 1.6,
    "inversion_images": 256,
    "inversion.steps": 150,
    "seeds": "0,1,2",
}
# Notebook 10's student is the ablation's with all losses; notebook 30's on synthetic images is that of the augmented GAN in 20.
_ABLATED = {"student.images": 20_000, "student.epochs": 3}
_WATCHED = {"student.watch": 4}
_SMOKE = {
    **_QUICK,
    "makers": "",  # all
    "teacher_synthetic_epochs": 1,
    "teacher.source": "train",
    "teacher.model": "vit_mnist_smoke",
    "teacher.epochs": 4,
    "teacher.lr": 5e-3,
    "teacher.images": 2000,
    "data.test_images": 500,
    "train_images": 300,
    "gan.epochs": 2,
    "gan.width": 32,
    "gan.d_width": 8,
    "feature.images": 1000,
    "feature.fid_images": 200,
    "student.model": "vit_mnist_smoke",
    "student.epochs": 2,
    "student.batch_size": 32,
    "real_images": 400,
    "synthetic_images": 400,
    "maker_images": 200,
    "guided.epochs": 2,
    "guided.steps": 4,
    "guided.batch_size": 20,
    "inversion_images": 40,
    "inversion.steps": 4,
    "inversion.batch_size": 20,
    "fast_rounds": 2,
    "fast_steps": 2,
    "seeds": "0,1",
}
# MNIST at the paper's sizes with the shipped teacher, as far as two cores get in one night.
_NIGHT = {
    **_QUICK,
    "makers": "",  # all
    "teacher_synthetic_epochs": 5,
    "inversion_images": 2560,
    "guided.steps": 40,
    "guided.batch_size": 64,
    "feature.fid_images": 10_000,
    "gan.epochs": 10,
    "gan.attention_share": 1.0,
    "train_images": 60_000,
    "claim_images": 4000,
    "real_images": 60_000,
    "synthetic_images": 50_000,
    "maker_images": 50_000,
    "student.epochs": 5,
    "seeds": "0,1,2,3,4",
}
_EARLY_QUICK = {
    "student": "dearkd_small",
    "baseline": "dearkd_baseline_small",
    "patch_size": 7,
    "images": 6000,
    "passes": 16_000,
    "shares": "0.1,0.25,1",
    "batch_size": 64,
    "lr": 2e-3,
    "feature_images": 20_000,
    "feature_epochs": 2,
    "inversion_images": 256,
    "inversion.steps": 150,
}
_TITN_QUICK = {
    "data.name": "mnist",
    "data.background": -1.0,
    "scale": "small",
    "images": 5000,
    "epochs": 3,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "augmentation": "shift",
    "recipe": "short",
    "feature_model": "cnn_small",
    "feature_images": 20_000,
    "feature_epochs": 2,
}
_DEPLOY_QUICK = {"calibration_images": 512, "parity_images": 512, "repeats": 200}
# Small detectors on small generated scenes; GIoU and what else the paper leaves out make the difference in minutes.
_DETECTION_QUICK = {
    "data.size": 80,
    "data.shortest": 0,
    "data.test_scenes": 300,
    "teacher.source": "shipped",
    "teacher.model": "detr_micro",
    "teacher.epochs": 18,
    "teacher.lr": 1e-3,
    "teacher.augment": 0.0,
    "student.model": "detr_mini",
    "student.inherit": True,
    "student.epochs": 4,
    "student.lr": 2e-3,
    "student.augment": 0.0,
    "student.precision": "fp32",
    "losses.giou": 2.0,
    "losses.box_distillation": 1.0,
    "losses.attention_distillation": 4.0,
    # Its backbone first, at half a step's cost: then the transformer that it starts with fits it.
    "losses.feature_distillation": 5.0,
    "losses.features_first": 0.625,
    "gan.epochs": 2,
    "gan.batch_size": 16,  # more steps
    "gan.lr": 1e-3,
    "gan.schedule": "cosine",
    "gan.precision": "fp32",
    "gan.attention_share": 0.125,
    "gan.width": 128,
    "gan.d_width": 32,
    "gan.ema": 0.99,
    "students": "train,plain,generated,synthetic",
    "seeds": "0",
}
DIFFERENCES: dict[str, dict[str, dict[str, object]]] = {
    "smoke": {
        "start": {"test_images": 400},
        "deploy": {
            "data.test_images": 500,
            "calibration_images": 64,
            "parity_images": 64,
            "repeats": 20,
        },
        "attention": {**_SMOKE, "statistics_images": 40, "scenes": 4},
        "synthesis": {**_SMOKE, "student.epochs": 1},
        "classification": {**_SMOKE, "student.watch": 2},
        "ablation": {**_SMOKE, "student.epochs": 1, "student.images": 200},
        "detection": {
            **_DETECTION_QUICK,
            "data.size": 48,
            "data.train_scenes": 64,
            "data.test_scenes": 16,
            "teacher.source": "train",
            "teacher.model": "detr_nano",
            "teacher.epochs": 2,
            "student.model": "detr_nano",
            "student.epochs": 1,
            "gan.epochs": 1,
            "gan.width": 16,
            "gan.d_width": 8,
            "students": "train,plain,synthetic",
            "seeds": "0,1",
            "examples": 4,
            "threshold": 0.1,
        },
        "early": {
            **_EARLY_QUICK,
            "images": 400,
            "data.test_images": 500,
            "passes": 1200,
            "shares": "0.5,1",
            "feature_images": 1000,
            "inversion_images": 20,
            "inversion.steps": 2,
            "seeds": "0,1",
        },
        "titn": {
            **_TITN_QUICK,
            "images": 300,
            "data.test_images": 500,
            "epochs": 1,
            "feature_images": 1000,
            "seeds": "0,1",
        },
    },
    "quick": {
        "deploy": _DEPLOY_QUICK,
        "attention": {**_QUICK, **_ABLATED, "statistics_images": 1000},
        "synthesis": {**_QUICK, **_WATCHED},
        "classification": {**_QUICK, **_WATCHED, "seeds": "0"},
        # On real images: of a quick GAN's no student gets to where settings can be told apart.
        "ablation": {**_QUICK, **_ABLATED, "source": "real"},
        "detection": _DETECTION_QUICK,
        # One seed here and in 30, so that no interval is printed: three take as long as all the rest.
        "early": {**_EARLY_QUICK, "seeds": "0"},
        "titn": {**_TITN_QUICK, "seeds": "0"},
    },
    "night": {
        "deploy": _DEPLOY_QUICK,
        "attention": _NIGHT,
        "synthesis": _NIGHT,
        "classification": {**_NIGHT, **_WATCHED, "student.epochs": 10},
        "ablation": {**_NIGHT, "student.epochs": 10},
        "detection": {
            **_DETECTION_QUICK,
            "data.train_scenes": 20_000,
            "student.model": "detr_nano",
            # So that a gain by a teacher is that of the losses of queries.
            "student.inherit": False,
            "losses.feature_distillation": 0.0,
            "losses.features_first": 0.0,
            "student.epochs": 12,
            "student.lr": 1e-3,
            "gan.epochs": 4,
            "students": "train,plain,aligned,synthetic,vanilla,layouts,inverted,generated",
            "seeds": "0,1,2",
        },
        "early": {
            **_EARLY_QUICK,
            "images": 60_000,
            "passes": 240_000,
            "inversion_images": 1280,
        },
        "titn": {**_TITN_QUICK, "images": 20_000, "epochs": 10},
    },
    "paper": {"ablation": {"student.epochs": 10}},
}


def _cifar(study: dict, early: dict) -> dict[str, dict[str, object]]:
    """What a preset changes besides for CIFAR: of A's methods, and of B's; and C's."""
    photographs = {"data.background": 0.0}
    a = {**photographs, "teacher.source": "train", "teacher.augmentation": "flip", **study}
    made = dict.fromkeys(("attention", "synthesis", "classification", "ablation"), a)
    return {
        **made,
        "early": {**photographs, "augmentation": "flip", "images": 50_000, **early},
        "titn": {**photographs, "augmentation": "autoaugment"},
    }


_ALL_IMAGES = {"train_images": 50_000, "real_images": 50_000}
_RESNET = {"feature.model": "resnet9", "feature.images": 50_000, "feature.epochs": 14}
_CIFAR_QUICK = {
    "teacher.model": "vit_cifar_small",
    "student.model": "vit_cifar_mini",
    "real_images": 50_000,
    "synthetic_images": 50_000,
}
_CIFAR_NIGHT = {
    **_CIFAR_QUICK,
    **_ALL_IMAGES,
    **_RESNET,
    "teacher.epochs": 40,
    "teacher.augmentation": "randaugment",
    "seeds": "0,1,2",
}
_CIFAR_PAPER = {
    **_ALL_IMAGES,
    **_RESNET,
    "teacher.model": "deit_base_patch4_32",
    "student.model": "vit_cifar_student",
}
_CIFAR = {
    "smoke": _cifar({}, {"patch_size": 8, "images": 400}),
    "quick": _cifar(_CIFAR_QUICK, {"patch_size": 8, "images": 6000}),
    "night": _cifar(_CIFAR_NIGHT, {"patch_size": 8, **_RESNET}),
    "paper": _cifar(_CIFAR_PAPER, _RESNET),
}
# Data set -> preset -> method -> settings, over those of the preset.
PROFILES = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    # C pads digits to its 32 pixels; a mirrored digit is another one, or none.
    "mnist": {
        "paper": {
            "titn": {"data.size": 32, "data.background": -1.0, "augmentation": "jitter"},
        }
    },
}
CIFAR_CLASSES = {
    "cifar10": set("airplane automobile bird cat deer dog frog horse ship truck".split()),
    "cifar100": {"aquarium_fish", "maple_tree", "sweet_pepper", "willow_tree"},  # and 96 others
}


def data_set(name: str) -> str:
    """The named set that images are of: a name's own, and that of a folder with the classes of CIFAR; else the name."""
    if name in PROFILES or not name:
        return name
    found: set[str] = set()
    with suppress(OSError, ValueError):  # words that cannot be a path name no folder
        with os.scandir(resolve(name) / "train") as entries:
            found = {entry.name for entry in entries if entry.is_dir()}
    if found == CIFAR_CLASSES["cifar10"]:
        return "cifar10"
    return "cifar100" if len(found) == 100 and CIFAR_CLASSES["cifar100"] <= found else name


def config_name(method: str) -> str:
    """Where the configuration class of a method is, "module:class"; WorkbenchError on a name that is none."""
    return METHODS[one_of("method", method, METHODS)]


def config_class(method: str) -> type[Config]:
    """The configuration class of a method; WorkbenchError on a name that is none."""
    return cast(type[Config], _named(config_name(method)))


def tasks(method: str) -> Callable[[Mapping[str, object]], dict[str, Callable[[], object]]] | None:
    """What a method's notebook trains, as a function of the names it defines, see `distill.tasks`; None: nothing."""
    return _named(TASKS[method]) if method in TASKS else None


def _named(name: str):
    """What "module:name" stands for."""
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)


def load(method: str, preset: str = "quick", overrides: str = "", **given: object) -> Config:
    """The configuration of a method: its defaults, changed by the preset, by what is given, and by overrides.

    In a notebook that papermill runs, parameters that it was given and that the notebook does not declare count as overrides.

    Args:
        preset: smoke, quick, night or paper. overrides: "student.epochs=10 gan.lam=0", as for `Config.override`.
        given: settings by name; "" and None mean what the preset says.

    Raises:
        WorkbenchError: on unknown names, with the nearest right one, and on impossible values.
    """
    config = of_preset(method, preset, str(given.get("data") or given.get("data.name") or ""))
    config = config.override({k: v for k, v in given.items() if not (v is None or v == "")})
    return config.override(overrides).override(injected(NOT_SETTINGS))


def of_preset(method: str, preset: str, data: str = "") -> Config:
    """The configuration of a method as a preset has it, for these images; WorkbenchError if there is no such method or preset.

    Args:
        data: a named set or a folder, see `PROFILES`; "": the method's own.
    """
    differences = DIFFERENCES[one_of("preset", preset, PRESETS)].get(method, {})
    profile = PROFILES.get(data_set(data), {}).get(preset, {}).get(method, {})
    return config_class(method)().override({**differences, **profile})


def of_parameters(method: str, parameters: Mapping[str, object]) -> Config:
    """The configuration that a notebook with these parameters loads: those that are settings of its method are given."""
    preset = str(parameters.get("preset", "quick"))
    known = config_class(method)()
    own = {k: v for k, v in parameters.items() if k not in NOT_SETTINGS and known.has(k)}
    return load(method, preset, str(parameters.get("overrides", "")), **own)


def overrides_text(values: Mapping[str, object]) -> str:
    """Settings by name as the text that `overrides` takes: "student.epochs=10 seeds=0,1"."""

    def word(name: str, value: object) -> str:
        text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return shlex.quote(f"{name}={text}")

    return " ".join(word(name, value) for name, value in values.items())
