"""What a paper's table is made of: parts that are trained, what they cost, and cells that stand beside the paper's figures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from matplotlib.figure import Figure

from dfkd_lib import synthesis, training
from dfkd_lib.core import Artifact, Config, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.synthesis import CGAN
from dfkd_lib.training import Effort, Precision, classifier_effort


@dataclass(frozen=True)
class Part:
    """Something that is trained for a table.

    Args:
        make: trains it, or finds it by its key: what was measured first, then what else it took time for.
        efforts: what it costs. needs: the parts that it is built on.
    """

    make: Callable[[], list[Artifact]]
    efforts: tuple[Effort, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Args:
        parts: that give it, one a seed; none where `note` says what is missing.
        value: of what such a part made. paper: the paper's, None where it gives none. note: how this one deviates.
    """

    row: str
    column: str
    parts: tuple[str, ...] = ()
    value: Callable[[list[Artifact]], float] = lambda made: 100 * made[0].metrics["accuracy"]
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure of a paper: what draws it of the table's parts, where it stands in the paper, what it shows."""

    draw: Callable[[], Figure]
    paper: str
    caption: str


@dataclass
class Made:
    """A table opened: its configuration, its parts by name ("teacher" among them), its cells, its figures by file name."""

    config: Config
    parts: dict[str, Part] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    figures: dict[str, Drawing] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a table is built from."""

    store: Store
    config: Config
    data: str
    train_set: ImageSet
    test_set: ImageSet

    def shape(self, overrides: dict | None = None) -> dict:
        return training.shape_of(self.train_set, overrides)

    def learning(
        self, model: str, passes: float, config: Config, setting: str, overrides=None
    ) -> Effort:
        """A classifier's training by so many passes of one image, with a configuration's batch size and precision."""
        how = {"batch_size": config.batch_size, "precision": config.precision, "setting": setting}
        return classifier_effort(model, self.shape(overrides), passes, **how)

    def looking(self, model: str, images: float, precision: Precision = "fp32") -> Effort:
        """Passes over so many images without learning."""
        return classifier_effort(model, self.shape(), images, learns=False, precision=precision)

    def judge(self, config) -> Effort:
        """The training of `synthesis.train_judge`."""
        images = min(config.images, len(self.train_set)) * config.epochs
        return classifier_effort(
            config.model, self.shape(), images, batch_size=128, precision="bf16"
        )

    def gan(self, gan: CGAN, images: int, teacher: str) -> Iterator[Effort]:
        """A GAN's training: its discriminator sees real images, made ones, and made ones again for the generator's gradient."""
        shape, seen = self.train_set.shape, images * gan.epochs
        how = {"batch_size": gan.batch_size, "precision": gan.precision}
        how["setting"] = "gan.batch_size"
        classes, labels = self.train_set.classes, partial(torch.zeros, dtype=torch.int64)
        yield Effort(
            f"generator {gan.width}, {shape[0]}, {len(classes)}",
            lambda: gan.new_generator(classes, shape),
            lambda count: (labels(count), torch.zeros(count, gan.latent)),
            seen * 4 / 3,
            **how,
        )
        yield Effort(
            f"discriminator {gan.d_width}, {shape[0]}, {len(classes)}",
            lambda: gan.networks(synthesis.Given(None, classes, shape))["discriminator"],
            lambda count: (torch.zeros(count, shape[0], 32, 32), labels(count)),
            seen * 3,
            **how,
        )
        if gan.lam:
            how["batch_size"] = max(1, round(gan.attention_share * gan.batch_size))
            yield classifier_effort(teacher, self.shape(), seen * gan.attention_share, **how)
