"""How good detections are: COCO's measures by size and class, curves and confusion on hand-made cases, tiles."""

import pytest
import torch

from dfkd_lib import datasets, detection
from dfkd_lib.datasets import SceneSet
from dfkd_lib.detection.curves import MEAN, confusion, matched, precision_recall_curves
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


# Curves and confusion

BIRD, PLANE = [.3, .3, .2, .2], [.7, .7, .2, .2]


def test_precision_over_recall_of_a_case_worked_out_by_hand():
    """Of two birds one is found at 0.9, the other at 0.5 behind a false alarm at 0.7: precision 1, then 2/3."""
    scenes = scenes_of((0, 0, BIRD), (1, 0, PLANE), (1, 1, BIRD))
    curves = precision_recall_curves(scenes, *said((0, 0, 0, .9, BIRD), (0, 1, 0, .7, PLANE), (1, 0, 0, .5, PLANE)))
    assert list(curves) == ["bird", "plane", MEAN]
    bird = curves["bird"]
    assert bird.recall[[0, 50, 100]].tolist() == pytest.approx([0, .5, 1])
    assert bird.precision[:51] == pytest.approx(1) and bird.precision[51:] == pytest.approx(2 / 3)
    assert bird.scores[:51] == pytest.approx(.9) and bird.scores[51:] == pytest.approx(.5)
    assert not curves["plane"].precision.any() and curves[MEAN].precision == pytest.approx(bird.precision / 2)


def test_the_mean_of_a_curve_is_the_average_precision():
    scenes = datasets.generate_scenes(20, 48, split="test")
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 6, 4, generator=generator)
    boxes = torch.rand(20, 6, 4, generator=generator) * .5 + .25
    for i, (true, labels) in enumerate(zip(scenes.boxes, scenes.labels, strict=True)):
        boxes[i, :len(true)] = true * (1 + .1 * torch.randn(true.shape, generator=generator))
        scores[i, range(len(true)), labels] += .5
    curves = precision_recall_curves(scenes, scores.clamp(max=1), boxes)
    measures = detection.average_precision(scenes, scores.clamp(max=1), boxes)
    assert 0.2 < measures["AP50"] < 1 and curves[MEAN].precision.mean() == pytest.approx(measures["AP50"])
    for name in scenes.classes:
        assert curves[name].precision.mean() == pytest.approx(measures["per_class"][name]["AP50"])
    assert set(precision_recall_curves(scenes, scores * 0, boxes)) == {*scenes.classes, MEAN}


def test_confusion_of_a_case_worked_out_by_hand():
    """A bird found, a plane taken for a bird, a plane missed, a bird where nothing is, a faint one that does not count."""
    scenes = scenes_of((0, 0, BIRD), (0, 1, PLANE), (1, 1, BIRD))
    found = said((0, 0, 0, .9, BIRD), (0, 1, 0, .8, PLANE), (1, 0, 0, .7, PLANE), (1, 1, 1, .4, BIRD))
    assert confusion(scenes, *found).tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert confusion(scenes, *found, threshold=.3).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert confusion(scenes, *said()).tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]


def test_the_pair_of_greatest_overlap_goes_first():
    """Both detections overlap both objects enough: the better pair is not taken apart for the sake of an order."""
    truth = torch.tensor([[.40, .5, .2, .2], [.44, .5, .2, .2]])
    found = torch.tensor([[.43, .5, .2, .2], [.37, .5, .2, .2], [.9, .9, .1, .1]])
    pairs, false, missed = matched(found, truth)
    assert pairs.tolist() == [[0, 1], [1, 0]] and false.tolist() == [2] and missed.tolist() == []
    assert matched(found[:0], truth).missed.tolist() == [0, 1] and matched(found, truth[:0]).false.tolist() == [0, 1, 2]
    assert matched(found[:1], truth, iou=.95).pairs.tolist() == []
