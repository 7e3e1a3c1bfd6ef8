"""What the attention explorer shows, as plain scalars."""

import shlex
from typing import Literal

from pydantic import Field

from dfkd_lib.core import Config

Weights = Literal[
    "attention", "rollout", "gradient", "legrad", "similarity", "components", "learning"
]
Colours = Literal["magma", "viridis", "cividis", "gray"]


class Choice(Config):
    """What is shown, as plain scalars: the explorer's state, and notebook 10's parameter `view`."""

    model: str = Field("", description="name of a model given to the explorer; '' is the first")
    data: str = Field(
        "",
        description="name of a set of images, or the path of an image file; '' is the first set that fits",
    )
    image: int = Field(
        0,
        description="its place in the data; of scenes that are not named the first with an object",
    )
    block: int = Field(-1, description="from the end if negative")
    head: int = Field(-1, description="-1 is the mean of the heads")
    token: str = Field(
        "",
        description="whose attention: class, distillation, the number of a patch, or of a detection's query for kind "
        "cross; '' is the class token, or a detector's query of the highest score",
    )
    kind: str = Field("", description="encoder or, for a detector, cross; '' is its usual one")
    weights: Weights = Field(
        "attention",
        description="gradient: gradient-weighted attention of the predicted class; legrad: by gradients of every block's "
        "attention alone; similarity: cosine of a patch's features "
        "with those of the others, or of another image in the same model; components: the first three principal components "
        "of the patches' features, as colours; learning: the last block's attention after an epoch of its training, of "
        "images that were watched",
    )
    epoch: int = Field(-1, description="of learning, 0 before training, from the end if negative")
    compare: str = Field(
        "",
        description="model:NAME for the same image in another model, models for it in all others, data:NAME for an image "
        "of the same class there",
    )
    without: str = Field(
        "",
        pattern=r"^(\d+(\.\d+)?)?$",
        description="a block (3) or a head of it (3.1), from 0: the model without its attention stands beside",
    )
    compare_image: int = Field(0, ge=0, description="which of that class's images there")
    threshold: float = Field(0.5, ge=0, le=1, description="score from which a detection is shown")
    overlay: float = Field(0.55, ge=0, le=1, description="how much the weights cover the image")
    colours: Colours = Field("magma", description="the colour map")
    scale: Literal["own", "one"] = Field(
        "own",
        description="one: a colour is the same weight on equal areas in both panels, whatever their grids",
    )

    @property
    def gone(self) -> tuple[int, int | None]:
        """Block and head (None: all of them) that the model beside is without."""
        block, _, head = self.without.partition(".")
        return int(block), int(head) if head else None

    @classmethod
    def read(cls, text: str) -> "Choice":
        """The choice that `text` wrote, as notebook 10's parameter `view`: "image=3 head=1"; "" is the default one.

        Raises:
            WorkbenchError: on a name that is none of these, or a value of another type.
        """
        return cls().override(text)

    def text(self) -> str:
        """What differs from the default choice, as `read` takes it."""
        changes = {name: mine for name, (mine, _) in self.differences(Choice()).items()}
        return " ".join(shlex.quote(f"{name}={value}") for name, value in changes.items())
