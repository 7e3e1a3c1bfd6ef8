"""Can a detector learn a handful of scenes by heart? If not, no longer training helps."""

from collections.abc import Iterator

import torch

from dfkd_lib import training
from dfkd_lib.datasets import SceneSet
from dfkd_lib.detection.batches import Batch, SceneBatches
from dfkd_lib.detection.detector import DetectorConfig
from dfkd_lib.detection.evaluate import evaluate_ap
from dfkd_lib.detection.step import DetectionWeights, detection_step
from dfkd_lib.models import create_detector

POINTS = 10  # of the curve


def spread(scenes: SceneSet, count: int) -> SceneSet:
    """`count` scenes with an object, taking the classes in turn by each scene's first object, and far apart in the set."""
    first = [int(labels[0]) if len(labels) else -1 for labels in scenes.labels]
    queues = [
        [i for i, k in enumerate(first) if k == wanted] for wanted in sorted(set(first) - {-1})
    ]
    count = min(count, sum(map(len, queues)))
    rows = []
    for place, queue in enumerate(queues):
        most = min(len(range(place, count, len(queues))), len(queue))
        rows += [queue[i * len(queue) // max(1, most)] for i in range(most)]
    return scenes.subset(rows)


class _Repeated(SceneBatches):
    """All scenes at every step, `repeats` steps an epoch."""

    repeats = 1

    def __len__(self) -> int:
        return self.repeats

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        for _ in range(self.repeats):
            yield self.rows(torch.randperm(len(self.images), generator=generator))


def overfit(name: str, scenes: SceneSet, epochs: int, lr: float = 1e-3, seed: int = 0) -> dict:
    """Train a detector from nothing on all of a few scenes at every step, and measure it on them.

    Args:
        name: for `create_detector`.
        epochs: steps, as each step sees every scene.

    Returns:
        As `evaluate_ap`, and "curve": [(epoch, AP50)].
    """
    torch.manual_seed(seed)
    detector, curve = create_detector(name, len(scenes.classes)), []
    batches = _Repeated(scenes, len(scenes))
    batches.repeats = max(1, epochs // POINTS)

    def measure(epoch: int) -> dict[str, float]:
        curve.append((epoch * batches.repeats, evaluate_ap(detector, scenes)["AP50"]))
        return {"AP50": curve[-1][1]}

    rounds, count = -(-epochs // batches.repeats), len(scenes)
    shared = {"warmup_epochs": 0.2, "precision": "fp32", "seed": seed}
    config = DetectorConfig(epochs=rounds, batch_size=count, lr=lr, **shared).training()
    step = training.bound(detection_step(DetectionWeights(giou=2.0)), detector, None)
    label = f"{name} on {count} scenes"
    training.fit({"detector": detector}, step, batches, config, evaluate=measure, label=label)
    return {**evaluate_ap(detector, scenes), "curve": curve}
