"""How good detections are: COCO's measures by size and class, curves and confusion on hand-made cases, tiles."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from dfkd_lib import datasets, detection, metrics, plots
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import SceneSet
from dfkd_lib.detection import tiles
from dfkd_lib.detection.tiles import predict_tiled, starts
from dfkd_lib.metrics import confusion, matched, precision_recall_curves
from dfkd_lib.metrics.detection_curves import MEAN
from dfkd_lib.models import Detections, create_detector

CLASSES = ("bird", "plane")
BIRD, PLANE = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]


def scenes_of(*objects, count: int = 2, scale=None) -> SceneSet:
    """Scenes of 100 x 100 pixels from (scene, class, box) rows."""
    boxes = [[box for scene, _, box in objects if scene == i] for i in range(count)]
    labels = [[label for scene, label, _ in objects if scene == i] for i in range(count)]
    return SceneSet(
        torch.zeros(count, 3, 100, 100, dtype=torch.uint8),
        [torch.tensor(b).view(-1, 4) for b in boxes],
        [torch.tensor(k, dtype=torch.int64) for k in labels],
        CLASSES,
        scale=scale,
    )


def detected(*rows, count: int = 2, queries: int = 4):
    """Scores (count, queries, 2) and boxes (count, queries, 4) from (scene, query, class, score, box) rows."""
    scores, boxes = torch.zeros(count, queries, 2), torch.full((count, queries, 4), 0.1)
    for scene, query, label, score, box in rows:
        scores[scene, query, label], boxes[scene, query] = score, torch.tensor(box)
    return scores, boxes


# Average precision by size and class


def test_sizes_are_those_of_the_original_image():
    """A bird of 20 pixels is found, one of 50 is not; at three times the scale they are medium and large."""
    objects = (0, 0, [0.3, 0.3, 0.2, 0.2]), (1, 0, [0.5, 0.5, 0.5, 0.5])
    found = detected((0, 0, 0, 0.9, [0.3, 0.3, 0.2, 0.2]))
    measures = metrics.average_precision(scenes_of(*objects), *found, by_size=True)
    sizes = [measures[f"AP_{size}"] for size in ("small", "medium", "large")]
    assert sizes == [pytest.approx(1), 0, None]
    assert measures["AP50"] == pytest.approx(51 / 101)
    enlarged = scenes_of(*objects, scale=torch.full((2,), 3.0))
    larger = metrics.average_precision(enlarged, *found, by_size=True)
    sizes = [larger[f"AP_{size}"] for size in ("small", "medium", "large")]
    assert sizes == [None, pytest.approx(1), 0]
    for name in ("AP", "AP50", "precision", "recall"):
        assert larger[name] == measures[name]


def test_nothing_found_and_nothing_to_find():
    one = scenes_of((0, 0, BIRD))
    measures = metrics.average_precision(one, *detected(), by_size=True)
    assert measures["AP"] == measures["AP_small"] == 0 and measures["AP_large"] is None
    found = detected((0, 0, 0, 0.9, BIRD))
    nothing = metrics.average_precision(scenes_of(), *found, by_size=True)
    assert nothing["AP"] == 0 and nothing["AP_small"] is None
    assert nothing["per_class"]["bird"]["AP75"] is None


def test_other_classes_are_refused_before_anything_is_computed():
    detector = create_detector("detr_nano", 3)
    detector.forward = lambda *_, **__: pytest.fail("it was asked")
    scenes = scenes_of((0, 0, BIRD))
    with pytest.raises(WorkbenchError, match="2 classes: bird, plane(.|\n)*3 classes"):
        detection.detections(detector, scenes)
    with pytest.raises(WorkbenchError, match="different classes"):
        metrics.average_precision(scenes, torch.zeros(2, 4, 3), torch.zeros(2, 4, 4))


# Curves and confusion


def test_precision_over_recall_of_a_case_worked_out_by_hand():
    """Of two birds one is found at 0.9, the other at 0.5 behind a false alarm at 0.7: precision 1, then 2/3."""
    scenes = scenes_of((0, 0, BIRD), (1, 0, PLANE), (1, 1, BIRD))
    found = detected((0, 0, 0, 0.9, BIRD), (0, 1, 0, 0.7, PLANE), (1, 0, 0, 0.5, PLANE))
    curves = precision_recall_curves(scenes, *found)
    assert list(curves) == ["bird", "plane", MEAN]
    bird = curves["bird"]
    assert bird.recall[[0, 50, 100]].tolist() == pytest.approx([0, 0.5, 1])
    assert bird.precision[:51] == pytest.approx(1) and bird.precision[51:] == pytest.approx(2 / 3)
    assert not curves["plane"].precision.any()
    assert curves[MEAN].precision == pytest.approx(bird.precision / 2)


def test_the_mean_of_a_curve_is_the_average_precision():
    scenes = datasets.generate_scenes(20, 48, split="test")
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 6, 4, generator=generator)
    boxes = torch.rand(20, 6, 4, generator=generator) * 0.5 + 0.25
    for i, (true, labels) in enumerate(zip(scenes.boxes, scenes.labels, strict=True)):
        boxes[i, : len(true)] = true * (1 + 0.1 * torch.randn(true.shape, generator=generator))
        scores[i, range(len(true)), labels] += 0.5
    curves = precision_recall_curves(scenes, scores.clamp(max=1), boxes)
    measures = metrics.average_precision(scenes, scores.clamp(max=1), boxes)
    assert 0.2 < measures["AP50"] < 1
    assert curves[MEAN].precision.mean() == pytest.approx(measures["AP50"])
    for name in scenes.classes:
        assert curves[name].precision.mean() == pytest.approx(measures["per_class"][name]["AP50"])
    assert set(precision_recall_curves(scenes, scores * 0, boxes)) == {*scenes.classes, MEAN}


def test_confusion_of_a_case_worked_out_by_hand():
    """A bird found, a plane taken for a bird, a plane missed, a bird where nothing is, a faint one that does not count."""
    scenes = scenes_of((0, 0, BIRD), (0, 1, PLANE), (1, 1, BIRD))
    found = detected(
        (0, 0, 0, 0.9, BIRD), (0, 1, 0, 0.8, PLANE), (1, 0, 0, 0.7, PLANE), (1, 1, 1, 0.4, BIRD)
    )
    assert confusion(scenes, *found).tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert confusion(scenes, *found, threshold=0.3).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert confusion(scenes, *detected()).tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 0]]


def test_the_pair_of_greatest_overlap_goes_first():
    """Both detections overlap both objects enough: the better pair is not taken apart for the sake of an order."""
    truth = torch.tensor([[0.40, 0.5, 0.2, 0.2], [0.44, 0.5, 0.2, 0.2]])
    found = torch.tensor([[0.43, 0.5, 0.2, 0.2], [0.37, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
    pairs, false, missed = matched(found, truth)
    assert pairs.tolist() == [[0, 1], [1, 0]] and false.tolist() == [2] and missed.tolist() == []
    assert matched(found[:0], truth).missed.tolist() == [0, 1]
    assert matched(found, truth[:0]).false.tolist() == [0, 1, 2]
    assert matched(found[:1], truth, iou=0.95).pairs.tolist() == []


# Calibration


def test_the_calibration_error_of_a_case_worked_out_by_hand():
    """Two bins: 0.9 three times, of which one is right (mean gap 0.9 - 1/3), and 0.2 once, right (gap 0.8)."""
    scores, right = np.array([0.9, 0.9, 0.9, 0.2]), np.array([True, False, False, True])
    assert metrics.calibration_error(scores, right) == pytest.approx((3 * (0.9 - 1 / 3) + 0.8) / 4)
    assert metrics.calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    assert metrics.calibration_error(np.empty(0), np.empty(0, bool)) == 0


def test_scaling_finds_the_temperature_and_shift_that_scores_were_made_with():
    random = np.random.default_rng(0)
    chance = random.uniform(0.02, 0.98, 100_000)
    right = random.random(len(chance)) < chance
    logits = 2.5 * (np.log(chance / (1 - chance)) + 0.7)  # too sure, and too high
    scores = 1 / (1 + np.exp(-logits))
    scaling = metrics.fit_scaling(scores, right)
    assert scaling == pytest.approx((2.5, -0.7), abs=0.05)
    after = scaling(torch.from_numpy(scores)).numpy()
    assert (
        metrics.calibration_error(scores, right)
        > 0.1
        > 0.01
        > metrics.calibration_error(after, right)
    )
    assert (np.argsort(after, kind="stable") == np.argsort(scores, kind="stable")).all()
    assert scaling(torch.tensor([0.0, 1.0])).tolist()[0] == 0
    assert metrics.fit_scaling(scores, np.ones(len(scores), bool)) == metrics.Scaling()
    assert torch.equal(metrics.Scaling()(torch.tensor([0.25])), torch.tensor([0.25]))


def test_each_object_makes_its_surest_detection_right():
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.8, 0.8, 0.1, 0.1]])
    scenes = SceneSet(
        torch.zeros(1, 3, 100, 100, dtype=torch.uint8), [boxes[:1]], [torch.tensor([1])], ("a", "b")
    )
    scores = torch.tensor([[[0.0, 0.6], [0.0, 0.8], [0.7, 0.005]]])
    found = zip(*metrics.judged(scenes, scores, boxes[None]), strict=True)
    assert sorted((round(float(s), 3), bool(r)) for s, r in found) == [
        (0.6, False),
        (0.7, False),
        (0.8, True),
    ]


# Tiles


class Blobs(torch.nn.Module):
    """Finds each patch of red (class 0) or green (class 1) in an image, cut by its border as it is seen."""

    num_labels, num_queries = 2, 8

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        logits, boxes = torch.full((len(images), 8, 3), -9.0), torch.full((len(images), 8, 4), 0.5)
        for i, image in enumerate(images):
            query = 0
            for k in range(2):
                colour = (image[k] - image[1 - k] > 0.6).numpy()
                for y, x in ndimage.find_objects(ndimage.label(colour)[0]):
                    wide, high = x.stop - x.start, y.stop - y.start
                    box = [x.start + wide / 2, y.start + high / 2, wide, high]
                    logits[i, query, k] = 2.0 + wide * high / image[0].numel()
                    boxes[i, query] = torch.tensor(box) / image.shape[-1]
                    query += 1
        return Detections(logits, boxes)


def frame(height, width, *squares):
    """A grey frame with squares (class, x, y, width, height) on it."""
    image = torch.full((3, height, width), 90, dtype=torch.uint8)
    for k, x, y, w, h in squares:
        image[:, y : y + h, x : x + w] = 0
        image[k, y : y + h, x : x + w] = 255
    return image


def rows(scores, boxes, width, height):
    """{(class, x, y, width, height) in pixels} of what was found with a score of half or more."""
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], -1)
    pixels = (corners * torch.tensor([width, height] * 2)).round().int().tolist()
    pairs = zip(scores, pixels, strict=True)
    return {(int(score.argmax()), *box) for score, box in pairs if score.max() > 0.5}


@pytest.mark.parametrize("size, tile", [(40, 40), (80, 40)])
def test_each_object_of_a_frame_is_found_once_and_whole(size, tile, monkeypatch):
    """Objects at a frame's corner, across borders of windows, and where four windows overlap."""
    squares = [(0, 0, 0, 8, 6), (1, 36, 10, 8, 8), (0, 66, 56, 8, 8), (1, 110, 72, 10, 8)]
    squares.append((0, 27, 27, 6, 6))
    frames = torch.stack([frame(80, 120, *squares), frame(80, 120)])
    monkeypatch.setattr(tiles, "OVERLAP", 0.3)
    scores, boxes = predict_tiled(Blobs(), frames, [tile], size)
    assert scores.shape == (2, 100, 2) and boxes.shape == (2, 100, 4)
    assert rows(scores[0], boxes[0], 120, 80) == set(squares)
    assert not scores[1].any() and not scores[0, 5:].any() and not boxes[0, 5:].any()


def test_frames_smaller_than_a_window_are_filled():
    detector = Blobs()
    scores, boxes = predict_tiled(detector, frame(20, 30, (1, 10, 5, 6, 6))[None], [40], 40)
    assert rows(scores[0], boxes[0], 30, 20) == {(1, 10, 5, 6, 6)}
    assert detector.seen == [(1, 3, 40, 40)]


def test_an_object_too_large_for_a_window_needs_a_larger_tile():
    large = frame(80, 120, (0, 20, 20, 50, 50))
    scores, boxes = predict_tiled(Blobs(), large[None], [32], 32)
    assert len(rows(scores[0], boxes[0], 120, 80)) > 1
    scores, boxes = predict_tiled(Blobs(), large[None], [80], 80)
    assert rows(scores[0], boxes[0], 120, 80) == {(0, 20, 20, 50, 50)}
    # Beside smaller ones, each in windows of a side that fits it; these do not see the large one whole.
    both = frame(80, 120, (0, 20, 20, 50, 50), (1, 90, 60, 6, 6))
    scores, boxes = predict_tiled(Blobs(), both[None], [32, 80], 80)
    assert rows(scores[0], boxes[0], 120, 80) == {(0, 20, 20, 50, 50), (1, 90, 60, 6, 6)}


class NearSighted(Blobs):
    """Takes dim squares for objects unless they are at least 9 pixels wide; is then half sure of green ones, a little aside."""

    def forward(self, images):
        found = super().forward(images)
        for image, logits, boxes in zip(images, found.logits, found.boxes, strict=True):
            for score, box in zip(logits, boxes, strict=True):
                at = (box[[1, 0]] * image.shape[-1]).int()
                if box[2] * image.shape[-1] >= 9 and score.max() > 0:
                    if image[:, at[0], at[1]].max() < 0.9:
                        score[:] = -9.0
                    elif score[1] > 0:
                        score[1] = 0.0
                        box[0] += 0.02
        return found


def test_a_second_look_leaves_what_is_no_object_from_near(monkeypatch):
    squares = [(0, 0, 0, 8, 8), (1, 110, 70, 6, 6), (1, 30, 50, 6, 6)]
    noise = frame(80, 120, *squares, (1, 60, 30, 6, 6))
    noise[1, 30:36, 60:66] = 200
    frames = torch.stack([noise, frame(80, 120)])
    first, _ = predict_tiled(NearSighted(), frames, [40], 40)
    detector = NearSighted()
    scores, boxes = predict_tiled(detector, frames, [40], 40, looks=[3.0, 4.0])
    assert (first[0].amax(-1) > 0.5).sum() == 4
    assert rows(scores[0], boxes[0], 120, 80) == set(squares), "objects at corners are found again"
    assert [shape for shape in detector.seen if shape[0] == 4] == [(4, 3, 40, 40)] * 2
    assert not scores[1].any(), "where nothing was found nothing is looked at again"
    # The score is the geometric mean of both looks, the box the mean by scores: here 0.5 of two windows of 18 and 24 pixels.
    before, after = (
        (given[0].argmax(-1) == 1) & (given[0, :, 1] > 0.5) for given in (first, scores)
    )
    surest = first[0, before, 1].max()
    green = scores[0, after, 1]
    torch.testing.assert_close(green.max(), (surest * 0.5).sqrt(), atol=1e-3, rtol=0)
    aside = (0.5 * 0.02 * 18 + 0.5 * 0.02 * 24) / (surest + 1)
    middle = boxes[0, after, 0].min() * 120
    assert abs(middle - (33 + aside)) < 0.05 < aside
    few = NearSighted()
    monkeypatch.setattr(tiles, "PIXELS", 2 * 40 * 40)
    predict_tiled(few, frames, [40], 40, looks=[3.0])
    assert max(shape[0] for shape in few.seen) == 2, "windows held at a time"
    far, places = predict_tiled(Blobs(), frames, [40], 40, looks=[30.0])  # larger than the frame
    assert far.isfinite().all() and 0 <= places.min() <= places.max() <= 1
    monkeypatch.setattr(tiles, "SURE", 1.0)
    faint, _ = predict_tiled(NearSighted(), frames, [40], 40, looks=[3.0])
    torch.testing.assert_close(faint, first)


@pytest.mark.parametrize(
    "length, tile, overlap",
    [(640, 104, 0.25), (512, 100, 0.0), (100, 100, 0.5), (50, 100, 0.2), (101, 100, 0.9)],
)
def test_windows_cover_an_axis_and_overlap_enough(length, tile, overlap, monkeypatch):
    monkeypatch.setattr(tiles, "OVERLAP", overlap)
    first = starts(length, tile)
    assert first[0] == 0 and first[-1] + tile == max(length, tile)
    assert all(b - a <= max(1, tile * (1 - overlap)) for a, b in itertools.pairwise(first))


def test_few_windows_are_held_at_a_time(monkeypatch):
    detector = Blobs()
    monkeypatch.setattr(tiles, "PIXELS", 4 * 40 * 40)
    predict_tiled(detector, frame(200, 200)[None].expand(2, -1, -1, -1), [40], 20)
    windows = [shape[0] for shape in detector.seen]
    assert max(windows) <= 4 and sum(windows) == 2 * 7 * 7


def test_four_scenes_in_one_frame_are_found_as_by_themselves(monkeypatch):
    monkeypatch.setattr(tiles, "OVERLAP", 0)
    scenes = datasets.generate_scenes(4, 80, split="test")
    detector = detection.open_shipped("detr_micro_scenes")
    a, b, c, d = scenes.pixels
    quad = torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)[None]
    scores, boxes = predict_tiled(detector, quad, [80], 80)
    corners = [(0, 0, 0, 0), (0.5, 0, 0, 0), (0, 0.5, 0, 0), (0.5, 0.5, 0, 0)]
    pairs = zip(scenes.boxes, corners, strict=True)
    truth = torch.cat([box / 2 + torch.tensor(corner) for box, corner in pairs])
    whole = SceneSet(quad, [truth], [torch.cat(scenes.labels)], scenes.classes)
    found = detection.predict(detector, scenes.images)
    alone = metrics.average_precision(scenes, *found)["AP50"]
    assert metrics.average_precision(whole, scores, boxes)["AP50"] >= alone - 0.1 > 0.5


# Figures


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in [*ax.texts, ax.title, ax.yaxis.label]]


def test_figures_say_what_they_show():
    scenes = scenes_of((0, 0, BIRD), (0, 1, PLANE), (1, 1, BIRD))
    found = detected((0, 0, 0, 0.9, BIRD), (0, 1, 0, 0.8, PLANE))
    curves = {"teacher": precision_recall_curves(scenes, *found), "nothing": {}}
    figure = plots.precision_recall_plot(curves)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["bird, AP 1.00", "plane, AP 0.00", f"{MEAN}, AP 0.50"]
    assert "no object to find" in texts(figure)
    figure = plots.detection_confusion({"teacher": confusion(scenes, *found)}, CLASSES)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == [*CLASSES, "background"]
    assert [t.get_text() for t in ax.get_xticklabels()] == [*CLASSES, "missed"]
    assert texts(figure).count("1") == 3
    measures = metrics.average_precision(scenes, *found, by_size=True)
    written = texts(plots.average_precision_bars({"teacher": measures, "student": measures}))
    # Medium and large are nowhere; birds are all found.
    assert written.count("–") == 4 and written.count("1.00") == 2


def test_compared_detections_are_named_and_inside_the_scene():
    corner, other = [0.05, 0.05, 0.1, 0.1], [0.95, 0.95, 0.1, 0.1]
    scenes = scenes_of((0, 0, corner), (0, 1, PLANE), count=3)
    truth = detection.truth(scenes)
    scores, boxes = detected((0, 0, 0, 0.9, corner), (0, 1, 1, 0.8, other), count=3)
    found = [metrics.sure(*pair) for pair in zip(scores, boxes, strict=True)]
    look = (torch.rand(4, 4).numpy(), found[0]["boxes"][0])
    figure = plots.detection_compare(
        scenes.pixels.numpy(),
        truth,
        {"teacher": found, "student": found},
        CLASSES,
        looks={"teacher": [look, None, None]},
    )
    assert len(figure.axes) == 6
    shown = {name: texts(figure).count(name) for name in ("bird 0.90", "plane 0.80", "no object")}
    assert set(shown.values()) == {2}
    assert "bird, plane" in texts(figure) and "student" in texts(figure)
    figure.canvas.draw()
    for ax in figure.axes[:4]:
        inside = ax.get_window_extent()
        for text in ax.texts:
            box = text.get_window_extent()
            assert inside.x0 - 3 <= box.x0 and box.x1 <= inside.x1 + 3 and box.y0 >= inside.y0 - 3
