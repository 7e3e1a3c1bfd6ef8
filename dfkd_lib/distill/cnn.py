"""The CNN that B's and C's students learn from: one that comes with the workbench, or one trained on real images."""

from typing import ClassVar, Literal

from pydantic import Field

from dfkd_lib.core import Artifact, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.synthesis import JudgeConfig, train_judge
from dfkd_lib.training import Augmentation, Kind, read_shipped, shipped_teacher


class CNNConfig(JudgeConfig):
    """A CNN teacher: a shipped one, whose record counts the real images it learned, or one trained by cross entropy."""

    main: ClassVar[str] = "source"

    source: Literal["shipped", "train"] = Field("train", description="where the CNN is from")
    shipped: str = Field("cnn_cifar10", description="name of the shipped one in data/teachers")
    model: str = Field("cnn_small", description="architecture of the one trained here")
    augmentation: Kind = Field(
        "shift", description="what is done to each of its images, but in C's own recipe"
    )

    @property
    def architecture(self) -> str:
        """The name of its model; WorkbenchError if it is to be a shipped one that is missing."""
        return read_shipped(self.shipped)[1]["model"] if self.source == "shipped" else self.model

    def opened(self, store: Store, train_set: ImageSet, test_set: ImageSet) -> Artifact:
        """The CNN, tested on the test images.

        Raises:
            WorkbenchError: if the shipped one is missing, or knows other classes than the images.
        """
        if self.source == "shipped":
            return shipped_teacher(store, self.shipped, test_set)
        augmentation = Augmentation(kind=self.augmentation)
        return train_judge(store, self, train_set, test_set, augmentation=augmentation)
