"""Whether a class rests on what the explorer's weights mark: insertion and deletion of the image that is shown."""

import torch

from dfkd_lib import attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.widgets.choice import Choice
from dfkd_lib.widgets.fitting import batch_of
from dfkd_lib.widgets.viewer import Viewer

CLAIMS = ("attention", "rollout", "gradient", "legrad")  # weights that say where a model looks


def can_be_followed(viewer: Viewer, choice: Choice) -> bool:
    """Whether the shown weights say of a classifier where it looks."""
    classifies = getattr(viewer.models[choice.model], "classifies", True)
    return choice.weights in CLAIMS and classifies and not viewer.is_detector(choice.model)


def followed(viewer: Viewer, choice: Choice) -> dict:
    """Curves and areas by `attention.insertion_deletion` of the weights of the first panel, and of a random order.

    Returns:
        {"shares": [S], "deletion" and "insertion": {"what is shown" and "a random order": {"curve": [S], "area": float}}}.

    Raises:
        WorkbenchError: if the weights are no claim of where a classifier looks.
    """
    if not can_be_followed(viewer, choice):
        raise WorkbenchError(
            "these weights do not say where a classifier looks",
            expected=f"one of {', '.join(CLAIMS)}, of a model with classes",
            got=f"{choice.weights} of {choice.model}",
            where="weights",
            fix="choose one of these",
        )
    (panel,) = viewer.panels(choice.replace(compare="", without=""))
    model = viewer.models[choice.model]
    image = batch_of(model, torch.from_numpy(panel.image)[None])
    probe = torch.from_numpy(panel.probe)
    chance = torch.rand(len(probe), generator=torch.Generator().manual_seed(0))
    found = attention.insertion_deletion(
        model, image.expand(2, -1, -1, -1), torch.stack([probe, chance])
    )
    told: dict = {"shares": found.shares.tolist()}
    for part in ("deletion", "insertion"):
        curves, areas = getattr(found, part).tolist(), getattr(found, f"{part}_area").tolist()
        named = zip(("what is shown", "a random order"), curves, areas, strict=True)
        told[part] = {name: {"curve": curve, "area": area} for name, curve, area in named}
    return told
