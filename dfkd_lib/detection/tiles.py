"""Small objects in large frames: overlapping windows are detected in one by one, what is found is put together, and looked
at again in windows about it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, box_iou
from torchvision.transforms.v2 import functional as images_of

from dfkd_lib.datasets import FILL, SMALLEST, Frames
from dfkd_lib.detection.detector import PIXELS, predict
from dfkd_lib.metrics import FAINT
from dfkd_lib.models import Detector

OVERLAP = (
    0.25  # of neighbouring windows as a share of their side, at least: as much as objects are large
)
KEPT = 100  # detections of a frame, at most
BORDER = 0.02  # share of a window within which a box touches its border
IOU = 0.5  # from which the less sure of two boxes of a class is left out
COVERED = 0.7  # share of a cut box that another one must cover to stand for it
SURE = 0.1  # score from which a detection is looked at again
SAME = 0.4  # IoU from which what is found then may be the same object


@torch.no_grad()
def predict_tiled(
    detector: Detector,
    images: Tensor | Frames,
    tiles: Sequence[int],
    size: int,
    looks: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Detect in whole frames by square windows, each resized to what the detector was trained on.

    A box that a border between windows cuts is left out where another window saw more of the same object; then
    non-maximum suppression within each class. An object that no window holds stays in pieces: it needs a larger tile, beside
    a smaller one that shows small objects large.

    Args:
        images: uint8 (N, 3, H, W), in memory or on disk.
        tiles: sides of the windows in pixels of the frames; what lies outside a frame is filled with the mean colour.
        size: side that windows are resized to.
        looks: sides of the windows about a detection, in longer sides of its box; none: no second look.

    Returns:
        Scores (N, KEPT, classes) in [0, 1], surest first, and boxes (N, KEPT, 4) cxcywh in [0, 1] of the frame, on the
        CPU; 0 where there are fewer. Memory beside these does not grow with the number of frames.
    """
    scores = torch.zeros(len(images), KEPT, detector.num_labels)
    boxes = torch.zeros(len(images), KEPT, 4)
    for row, image in enumerate(images):
        found = (_in_windows(detector, image, tile, size) for tile in tiles)
        chosen = _put_together(*map(torch.cat, zip(*found, strict=True)))
        if looks:
            chosen = _looked_again(detector, image, *chosen, looks, size)
        scores[row, : len(chosen[0])], boxes[row, : len(chosen[1])] = chosen
    return scores, box_convert(boxes, "xyxy", "cxcywh")


def starts(length: int, tile: int) -> list[int]:
    """Where windows of `tile` pixels begin along an axis: evenly, from 0 to the last pixel, overlapping enough."""
    steps = -(-max(0, length - tile) // max(1, int(tile * (1 - OVERLAP))))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)] if steps else [0]


def _in_windows(
    detector: Detector, image: Tensor, tile: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What is found in all windows of one side: scores (n, classes), boxes (n, 4) xyxy in [0, 1], cut (n,) bool."""
    height, width = image.shape[1:]
    tops, lefts = (starts(length, tile) for length in (height, width))
    frame, parts = torch.tensor([width, height]), []
    together = max(1, PIXELS // max(tile, size) ** 2)
    corners = [(x, y) for y in tops for x in lefts]
    for chunk in (corners[i : i + together] for i in range(0, len(corners), together)):
        windows = torch.stack([_window(image, x, y, tile, size) for x, y in chunk])
        scores, boxes = predict(detector, windows)
        boxes, low = box_convert(boxes, "cxcywh", "xyxy"), torch.tensor(chunk).float()[:, None]
        # A border of the window that lies within the frame cuts; one at or beyond the frame's does not.
        inner = torch.cat([low > 0, low + tile < frame], -1)
        near = torch.cat([boxes[..., :2] < BORDER, boxes[..., 2:] > 1 - BORDER], -1)
        boxes = (boxes * tile + low.repeat(1, 1, 2)) / frame.repeat(2)
        clear = scores.amax(-1) > FAINT
        parts.append((scores[clear], boxes.clamp(0, 1)[clear], (inner & near).any(-1)[clear]))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _window(image: Tensor, x: int, y: int, tile: int, size: int) -> Tensor:
    """A window of a frame, filled where it reaches beyond, resized."""
    seen = image[:, y : y + tile, x : x + tile]
    room = [0, 0, tile - seen.shape[2], tile - seen.shape[1]]
    window = images_of.pad(seen, room, fill=list(FILL)) if any(room) else seen
    return window if tile == size else images_of.resize(window, [size, size], antialias=True)


def _put_together(scores: Tensor, boxes: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """The detections of all windows of a frame as one list, surest first."""
    best, label = scores.max(-1)
    # Pairs are compared below: among thousands the faintest are never kept.
    order = best.argsort(descending=True, stable=True)[: 20 * KEPT]
    scores, boxes, cut, best, label = (x[order] for x in (scores, boxes, cut, best, label))
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    covered = (high - low).clamp(min=0).prod(-1) >= COVERED * area[:, None]
    # Of two cut boxes the larger may stand for the other; a faint one stands for nothing.
    larger = ~cut[None] | (area[None] > area[:, None])
    stands = covered & larger & (label[:, None] == label[None]) & (best[None] >= best[:, None] / 2)
    stands.fill_diagonal_(False)
    left = (~(cut & stands.any(1)) & (area > 0)).nonzero().flatten()
    left = left[batched_nms(boxes[left], best[left], label[left], IOU)[:KEPT]]
    return scores[left], boxes[left]


def _looked_again(
    detector: Detector,
    image: Tensor,
    scores: Tensor,
    boxes: Tensor,
    looks: Sequence[float],
    size: int,
) -> tuple[Tensor, Tensor]:
    """A frame's detections, surest first, after the sure ones were looked at again; see `predict_tiled`."""
    best, label = scores.max(-1)
    count = int((best >= SURE).sum())
    if not count:
        return scores, boxes
    frame = torch.tensor([image.shape[2], image.shape[1]]).repeat(2)
    own, first, every = boxes[:count] * frame, best[:count], torch.arange(count)
    second, weighted, weight = [], own * first[:, None], first
    for look in looks:
        side = ((own[:, 2:] - own[:, :2]).amax(-1) * look).round().clamp(min=SMALLEST)
        most = (frame[:2] - side[:, None]).clamp(min=0)
        low = ((own[:, :2] + own[:, 2:] - side[:, None]) / 2).round().clamp(min=0).minimum(most)
        found, places = _about(detector, image, low, side, size)
        pairs = zip(own, places, strict=True)
        same = torch.stack([box_iou(mine[None], theirs)[0] for mine, theirs in pairs]) >= SAME
        score, index = (found[every, :, label[:count]] * same).max(1)
        second.append(score)
        weighted = weighted + places[every, index] * score[:, None]
        weight = weight + score
    change = (torch.stack(second).mean(0) / first).sqrt()
    scores = torch.cat([scores[:count] * change[:, None], scores[count:]])
    boxes = torch.cat([(weighted / weight[:, None] / frame).clamp(0, 1), boxes[count:]])
    kept = batched_nms(boxes, scores.amax(-1), label, IOU)
    return scores[kept], boxes[kept]


def _about(
    detector: Detector, image: Tensor, low: Tensor, side: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """What is found in windows from `low` (n, 2) of sides (n,): scores (n, Q, classes), boxes (n, Q, 4) xyxy in pixels."""
    windows = list(zip(low.int().tolist(), side.int().tolist(), strict=True))
    together, parts = max(1, PIXELS // size**2), []
    for chunk in (windows[i : i + together] for i in range(0, len(windows), together)):
        seen = torch.stack([_window(image, x, y, tile, size) for (x, y), tile in chunk])
        parts.append(predict(detector, seen))
    scores, boxes = (torch.cat(column) for column in zip(*parts, strict=True))
    boxes = box_convert(boxes, "cxcywh", "xyxy") * side[:, None, None]
    return scores, boxes + low.repeat(1, 2)[:, None]
