"""Can a detector learn a handful of scenes by heart? If not, no longer training helps."""

import tempfile

from dfkd_lib.core import Store
from dfkd_lib.datasets import Scenes, SceneSet
from dfkd_lib.detection.detector import DetectorConfig, train
from dfkd_lib.detection.step import DetectionWeights, detection_step

POINTS = 10  # of the curve


def spread(scenes: SceneSet, count: int) -> SceneSet:
    """`count` scenes with an object, taking the classes in turn by each scene's first object, and far apart in the set."""
    first = [int(labels[0]) if len(labels) else -1 for labels in scenes.labels]
    queues = [[i for i, k in enumerate(first) if k == own] for own in sorted(set(first) - {-1})]
    count = min(count, sum(map(len, queues)))
    rows = []
    for place, queue in enumerate(queues):
        most = min(len(range(place, count, len(queues))), len(queue))
        rows += [queue[i * len(queue) // max(1, most)] for i in range(most)]
    return scenes.subset(rows)


def overfit(name: str, scenes: SceneSet, steps: int, lr: float = 1e-3, seed: int = 0) -> dict:
    """Train a detector from nothing on a few scenes, as many of them at every step, and measure it on them.

    Args:
        name: for `create_detector`.
        steps: at least so many.

    Returns:
        Metrics as of `train`, and "curve": [(step, AP50)].
    """
    repeats, count = -(-steps // POINTS), len(scenes)
    repeated = scenes.subset([*range(count)] * repeats)
    shared = {"warmup_epochs": 0.2, "precision": "fp32", "augment": None, "seed": seed}
    config = DetectorConfig(model=name, epochs=POINTS, batch_size=count, lr=lr, **shared)
    step = detection_step(DetectionWeights(giou=2.0))
    with tempfile.TemporaryDirectory() as folder:
        made = train(Store(folder), config, step, repeated, Scenes.of(scenes))
        history = made.json("history.json")
    curve = [(row["epoch"] * repeats, row["AP50"]) for row in history]
    return {**made.metrics, "curve": curve}
