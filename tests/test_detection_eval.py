"""How good detections are: COCO's measures by size and class, curves and confusion on hand-made cases, tiles."""

import pytest
import torch

from dfkd_lib import detection
from dfkd_lib.datasets import SceneSet
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.models import create_detector

CLASSES = ("bird", "plane")


def scenes_of(*objects, count: int = 2, scale=None) -> SceneSet:
    """Scenes of 100 x 100 pixels from (scene, class, box) rows."""
    boxes = [[box for scene, _, box in objects if scene == i] for i in range(count)]
    labels = [[label for scene, label, _ in objects if scene == i] for i in range(count)]
    return SceneSet(torch.zeros(count, 3, 100, 100, dtype=torch.uint8), [torch.tensor(b).view(-1, 4) for b in boxes],
                    [torch.tensor(k, dtype=torch.int64) for k in labels], CLASSES, scale=scale)


def said(*rows, count: int = 2, queries: int = 4):
    """Scores (count, queries, 2) and boxes (count, queries, 4) from (scene, query, class, score, box) rows."""
    scores, boxes = torch.zeros(count, queries, 2), torch.full((count, queries, 4), 0.1)
    for scene, query, label, score, box in rows:
        scores[scene, query, label], boxes[scene, query] = score, torch.tensor(box)
    return scores, boxes


# Average precision by size and class

def test_sizes_are_those_of_the_original_image():
    """A bird of 20 pixels is found, one of 50 is not; at three times the scale they are medium and large."""
    objects = (0, 0, [.3, .3, .2, .2]), (1, 0, [.5, .5, .5, .5])
    found = said((0, 0, 0, .9, [.3, .3, .2, .2]))
    measures = detection.average_precision(scenes_of(*objects), *found, by_size=True)
    assert measures["AP_small"] == pytest.approx(1) and measures["AP_medium"] == 0 and measures["AP_large"] is None
    assert measures["AP50"] == pytest.approx(51 / 101)
    larger = detection.average_precision(scenes_of(*objects, scale=torch.full((2,), 3.0)), *found, by_size=True)
    assert larger["AP_small"] is None and larger["AP_medium"] == pytest.approx(1) and larger["AP_large"] == 0
    assert {name: larger[name] for name in ("AP", "AP50", "precision", "recall")} == \
        {name: measures[name] for name in ("AP", "AP50", "precision", "recall")}


def test_each_class_has_its_three_measures():
    scenes = scenes_of((0, 0, [.3, .3, .2, .2]), (1, 1, [.5, .5, .4, .4]))
    measures = detection.average_precision(scenes, *said((0, 0, 0, .9, [.34, .3, .2, .2]), (1, 0, 1, .9, [.5, .5, .4, .4])))
    assert measures["per_class"]["bird"] == {"AP": pytest.approx(.4), "AP50": pytest.approx(1), "AP75": 0}  # IoU 2/3
    assert measures["per_class"]["plane"] == {name: pytest.approx(1) for name in ("AP", "AP50", "AP75")}


def test_nothing_found_and_nothing_to_find():
    measures = detection.average_precision(scenes_of((0, 0, [.3, .3, .2, .2])), *said(), by_size=True)
    assert measures["AP"] == measures["AP_small"] == 0 and measures["AP_large"] is None
    nothing = detection.average_precision(scenes_of(), *said((0, 0, 0, .9, [.3, .3, .2, .2])), by_size=True)
    assert nothing["AP"] == 0 and nothing["AP_small"] is None and nothing["per_class"]["bird"]["AP75"] is None


def test_other_classes_are_said_before_anything_is_computed():
    detector = create_detector("detr_nano", 3)
    detector.forward = lambda *_, **__: pytest.fail("it was asked")
    scenes = scenes_of((0, 0, [.3, .3, .2, .2]))
    for ask in (detection.evaluate_ap, detection.detections):
        with pytest.raises(WorkbenchError, match="2 classes: bird, plane(.|\n)*3 classes"):
            ask(detector, scenes)
    with pytest.raises(WorkbenchError, match="different classes"):
        detection.average_precision(scenes, torch.zeros(2, 4, 3), torch.zeros(2, 4, 4))
