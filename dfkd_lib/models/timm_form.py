"""The named models as timm builds them; of those that timm lacks it learns the names when this is imported.

So `timm.create_model("local-dir:FOLDER", pretrained=True)` opens what is written in timm's layout: a plain vision
transformer anywhere; one that embeds patches by convolutions, TITN, DearKD, the small CNNs and the peers' CNNs after
`import dfkd_lib.models`.
"""

from timm.models import build_model_with_cfg, is_model, register_model
from torch import nn

from dfkd_lib.models.classifiers import build_vit
from dfkd_lib.models.cnn import build_squeezenet, build_timm
from dfkd_lib.models.create import MODELS, model_settings
from dfkd_lib.models.peers import build_resnet

# By `distilled`; timm's entry points take any size as keywords.
PLAIN = {False: "vit_tiny_patch16_224", True: "deit_tiny_distilled_patch16_224"}
KEYWORDS = {"width": "embed_dim", "heads": "num_heads"}
default_cfgs = {}  # where timm's `register_model` finds a model's configuration


def timm_form(name: str, overrides: dict) -> tuple[str, dict]:
    """timm's name and keywords of the model that `create_model(name, **overrides)` builds.

    Raises:
        WorkbenchError: on an unknown name or override.
    """
    settings = model_settings(name, overrides)
    del settings["small_start"]  # of the initial weights alone
    builder, _ = MODELS[name]
    if builder is build_timm:
        del settings["img_size"]  # it takes any
        return settings.pop("architecture"), settings
    if builder is build_vit and not settings["convolutional"]:
        del settings["convolutional"]
        architecture = PLAIN[settings.pop("distilled")]
        return architecture, {KEYWORDS.get(key, key): value for key, value in settings.items()}
    return name, settings


def _register(name: str, own: dict) -> None:
    """Let timm know a model of ours by its name."""

    def entry(pretrained: bool = False, **keywords) -> nn.Module:
        return build_model_with_cfg(MODELS[name][0], name, pretrained, **{**own, **keywords})

    last = {build_resnet: "fc", build_squeezenet: "classifier.1"}.get(MODELS[name][0], "head")
    default_cfgs[name] = {
        "input_size": (own["in_chans"], own["img_size"], own["img_size"]),
        "fixed_input_size": True,
        "num_classes": own["num_classes"],
        "classifier": ("head", "head_dist") if own.get("distilled") else last,
    }
    entry.__name__ = name
    register_model(entry)


for _name in MODELS:
    _architecture, _keywords = timm_form(_name, {})
    if not is_model(_architecture):
        _register(_name, _keywords)
