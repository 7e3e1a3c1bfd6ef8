"""Can a detector learn a handful of scenes by heart? If not, something is wrong that no longer training mends."""

import torch

from dfkd_lib import training
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.detection.batches import SceneBatches
from dfkd_lib.detection.distill import DetectionTerms, detection_step
from dfkd_lib.detection.evaluate import evaluate_ap
from dfkd_lib.models.detectors import create_detector
from dfkd_lib.training import TrainConfig

LOOKS = 10  # times that it is measured on the way


def spread(scenes: SceneSet, count: int) -> SceneSet:
    """`count` scenes with an object, taking the classes in turn by each scene's first object, and far apart in the set."""
    queues = [
        [i for i, labels in enumerate(scenes.labels) if len(labels) and int(labels[0]) == k]
        for k in range(len(scenes.classes))
    ]
    queues = [queue for queue in queues if queue]
    count = min(count, sum(map(len, queues)))
    wanted = [len(range(k, count, len(queues))) for k in range(len(queues))]
    return scenes.subset(
        [
            queue[place * len(queue) // max(1, most)]
            for queue, most in zip(queues, wanted, strict=True)
            for place in range(min(most, len(queue)))
        ]
    )


def overfit(name: str, scenes: SceneSet, epochs: int, lr: float = 1e-3, seed: int = 0) -> dict:
    """Train a detector from nothing on all of a few scenes at every step, and measure it on them.

    Args:
        name: for `create_detector`. scenes: few. epochs: steps, as each step sees every scene.

    Returns:
        As `evaluate_ap`, and "curve": [(epoch, AP50)].
    """
    torch.manual_seed(seed)
    detector, curve = create_detector(name, len(scenes.classes)), []
    batches, per = SceneBatches(scenes, len(scenes), augment=None), max(1, epochs // LOOKS)

    class Repeated:
        def __len__(self):
            return per

        def __call__(self, epoch, generator):
            for _ in range(per):
                yield from batches(epoch, generator)

    def look(epoch: int) -> dict[str, float]:
        curve.append((epoch * per, evaluate_ap(detector, scenes)["AP50"]))
        return {"AP50": curve[-1][1]}

    config = TrainConfig(
        epochs=-(-epochs // per),
        batch_size=len(scenes),
        lr=lr,
        weight_decay=1e-4,
        warmup_epochs=0.2,
        grad_clip=1.0,
        seed=seed,
    )
    training.fit(
        {"detector": detector},
        detection_step(detector, DetectionTerms()),
        Repeated(),
        config,
        evaluate=look,
        label=f"{name} on {len(scenes)} scenes",
    )
    return {**evaluate_ap(detector, scenes), "curve": curve}
