"""Frames that are filled up to a scene: the mask is the processor's, and a DETR sees and places within the frame."""

import pytest
import torch
from PIL import Image
from transformers import DetrImageProcessor

from dfkd_lib.datasets import FILL, Frames
from dfkd_lib.datasets.frames import View
from dfkd_lib.detection import Batch, predict
from dfkd_lib.detection.batches import augmented
from dfkd_lib.models import create_detector
from dfkd_lib.models.detector import pixel_mask


def filled(frames, height, width):
    """uint8 frames (3, h, w) as one batch in [0, 1], filled at right and bottom."""
    images = torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1)
    images = images.expand(len(frames), 3, height, width).clone()
    for image, frame in zip(images, frames, strict=True):
        image[:, : frame.shape[1], : frame.shape[2]] = frame
    return images.float() / 255


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    sizes = ((96, 64), (50, 64), (96, 33))
    return [
        torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]


def test_the_mask_is_the_processors(frames):
    """Whose frames of several sizes are filled with 0, at right and bottom too."""
    known = DetrImageProcessor(do_resize=False)(images=frames, return_tensors="pt")["pixel_mask"]
    mask, place = pixel_mask(filled(frames, 96, 64))
    assert torch.equal(mask, known)
    share = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 50 / 96], [0, 0, 33 / 64, 1]])
    assert torch.equal(place, share)


def test_augmented_scenes_stay_filled_where_their_frames_end():
    """A frame of half a scene's width is an object itself: its box ends where the mask does."""
    frame = torch.randint(
        256, (3, 96, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    images, labels = filled([frame] * 32, 96, 96), torch.zeros(32, 1, dtype=torch.int64)
    boxes = torch.tensor([0.25, 0.5, 0.5, 1.0]).expand(32, 1, 4)
    moved, labels, boxes, _ = augmented(
        Batch(images, labels, boxes), torch.Generator().manual_seed(0)
    )
    mask, place = pixel_mask(moved)
    assert (mask.sum(1) % 96 == 0).all() and 0.2 < mask.float().mean() < 0.8
    left, right = boxes[:, 0, 0] - boxes[:, 0, 2] / 2, boxes[:, 0, 0] + boxes[:, 0, 2] / 2
    mirrored = place[:, 0] > 0
    ends = torch.where(mirrored, left - place[:, 0], right - place[:, 0] - place[:, 2])
    assert 8 < mirrored.sum() < 24 and ends.abs().max() < 1.5 / 96


@torch.no_grad()
@pytest.mark.parametrize("on_disk", [False, True])
def test_frames_of_several_sizes_are_predicted_as_each_alone(on_disk, frames, tmp_path):
    """By size, without what fills them; boxes are shares of the image. One that is narrower than a token stays filled."""
    detector = create_detector("detr_nano", 4).eval()
    frames = [*frames, frames[1], frames[0][:, :, :20]]
    images = (filled(frames, 96, 64) * 255).round().byte()
    if on_disk:
        views = []
        for number, frame in enumerate(frames):
            file = tmp_path / f"{number}.png"
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file)
            views.append(View(file, (frame.shape[2], frame.shape[1])))
        images = Frames(views, 96, 64)
    frames[-1] = images[4]
    seen = []
    detector.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    scores, boxes = predict(detector, images)
    assert sorted(seen) == [(1, 3, 96, 33), (2, 3, 50, 64), (2, 3, 96, 64)]
    for row, frame in enumerate(frames):
        alone = detector(frame[None].float() / 255)
        share = torch.tensor([frame.shape[2] / 64, frame.shape[1] / 96]).repeat(2)
        assert torch.allclose(scores[row], alone.logits[0, :, :4].sigmoid(), atol=1e-5)
        assert torch.allclose(boxes[row], alone.boxes[0] * share, atol=1e-5)


@torch.no_grad()
def test_what_no_mask_hides_is_predicted_as_it_is(frames):
    detector, images = create_detector("deimv2_atto", 4).eval(), filled(frames, 96, 64)
    scores, boxes = predict(detector, (images * 255).round().byte())
    assert torch.allclose(boxes, detector(images).boxes, atol=1e-4)


@pytest.mark.parametrize("seen", [0, 20])
def test_what_would_be_narrower_than_a_token_counts_as_a_whole(seen):
    images = filled([torch.full((3, 64, seen), 9, dtype=torch.uint8)], 64, 64)
    mask, place = pixel_mask(images)
    assert mask.all() and place[0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["detr_nano", "detr_resnet18_2x2"])
def test_a_detr_is_given_the_mask_and_its_boxes_lie_in_the_frame(frames, name):
    detector, images = create_detector(name, 4).eval(), filled(frames, 96, 64)
    pixels = (images - detector.mean) / detector.std
    mask, _ = pixel_mask(images)
    with torch.no_grad():
        found, known = detector(images), detector.network(pixel_values=pixels, pixel_mask=mask)
    assert torch.allclose(found.logits, known.logits, atol=1e-5)
    share = torch.tensor([[1, 1], [1, 50 / 96], [33 / 64, 1]]).repeat(1, 2)
    assert torch.allclose(found.boxes, known.pred_boxes * share[:, None], atol=1e-5)
    with torch.no_grad():
        mirrored = images.flip(-1)
        place = pixel_mask(mirrored)[1]
        moved = detector(mirrored).boxes[2]
        inside = detector.network(
            pixel_values=pixels.flip(-1), pixel_mask=mask.flip(-1)
        ).pred_boxes[2]
    assert place[2].tolist() == pytest.approx([31 / 64, 0, 33 / 64, 1])
    assert torch.allclose(moved[:, 0], 31 / 64 + inside[:, 0] * 33 / 64, atol=1e-5)
