"""transformers' image models from a folder on this disk: classifiers, and backbones without one."""

from pathlib import Path

import torch
from torch import nn

from dfkd_lib.models.weights import as_numbers, misfit


def open_transformers(folder: Path, record: dict) -> tuple[nn.Module, bool]:
    """transformers' image classifier of a folder, or the backbone of one; and whether it is a classifier.

    Every weight is there and a number. Of a backbone the output is what a classifier would be given. `record` is what its
    config.json holds.
    """
    import transformers

    usual = transformers.AutoConfig.for_model(record.get("model_type", ""))
    config = type(usual).from_dict(record)
    if config.model_type == "vit_mae":  # as MAE it hides and shuffles patches, as a ViT it does not
        config = transformers.ViTConfig(**{**config.to_dict(), "model_type": "vit"})
    known = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    kind = transformers.AutoModelForImageClassification if known else transformers.AutoModel
    model, report = kind.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=True,
        # A repository's own code is never run, nor is the reader asked whether it may.
        trust_remote_code=False,
    )
    fix = "choose a checkpoint of an image classifier or its backbone"
    if model.main_input_name != "pixel_values" or config.is_encoder_decoder:
        raise misfit("pixel_values alone as input", type(model).__name__, folder, fix)
    missing = sorted(str(key) for key in report["missing_keys"])
    heads = {key.partition(".")[0] for key in missing}
    whole = {f"{head}.{key}" for head in heads for key in getattr(model, head).state_dict()}
    claimed = any(one.endswith("ForImageClassification") for one in config.architectures or ())
    if missing and (set(missing) != whole or not (heads == {"pooler"} or not claimed and known)):
        first = f"{missing[0]} (and {len(missing) - 1} more)"
        raise misfit(first, "no such weight", folder, fix)
    for head in heads:
        setattr(model, head, nn.Flatten() if known else None)
    as_numbers(model.state_dict(), model.state_dict(), folder)
    return model, known and not heads
