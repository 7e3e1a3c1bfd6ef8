"""Generated scenes: the same bytes from the same seed, the boxes of what was drawn, counted by the ledger."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfkd_lib.core import WorkbenchError, ledger
from dfkd_lib.datasets import SceneSet, generate_scenes
from dfkd_lib.datasets import scenes as room
from dfkd_lib.datasets.silhouettes import CLASSES


@pytest.fixture(scope="module")
def train() -> SceneSet:
    return generate_scenes(200, size=64, seed=3)


def test_shapes_types_and_ranges(train):
    assert train.pixels.shape == (200, 3, 64, 64) and train.pixels.dtype == torch.uint8
    assert train.classes == ("bird", "helicopter", "drone", "plane")
    for boxes, labels in zip(train.boxes, train.labels, strict=True):
        assert boxes.shape == (len(labels), 4)
        assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
        assert (boxes[:, :2] - boxes[:, 2:] / 2 >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] / 2 <= 1).all()
        assert ((labels >= 0) & (labels < 4)).all()


def test_from_no_object_to_four_and_every_class(train):
    assert {len(labels) for labels in train.labels} == {0, 1, 2, 3, 4}
    assert min(train.counts().values()) > 50


def test_same_seed_same_bytes_and_a_longer_set_begins_with_the_shorter(train):
    again = generate_scenes(20, size=64, seed=3)
    assert again.fingerprint == train.subset(range(20)).fingerprint
    assert generate_scenes(20, size=64, seed=4).fingerprint != again.fingerprint
    assert generate_scenes(20, size=64, seed=3, split="test").fingerprint != again.fingerprint


@pytest.mark.parametrize("label", range(4), ids=CLASSES)
def test_boxes_are_those_of_what_is_drawn(label):
    """Draw one object on an even background and compare the changed pixels with the box."""
    for seed in range(15):
        canvas = np.full((96, 96, 3), 128, np.float32)
        box = room._draw(canvas, label, 40.0, [], np.random.default_rng(seed))
        rows, columns = np.nonzero(np.abs(canvas - 128).max(axis=2) > 0.5)
        drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(drawn) - box).max() <= 1.5, (seed, drawn, box)
        assert max(box[2] - box[0], box[3] - box[1]) == pytest.approx(40)


def test_a_subset_keeps_its_place_in_the_split(train):
    part = train.subset([5, 2])
    assert torch.equal(part.pixels[1], train.pixels[2])
    assert torch.equal(part.boxes[0], train.boxes[5])
    assert part.split == "aerial/train" and part.rows.tolist() == [5, 2]


def test_scale_is_kept_and_counts_only_where_it_is_not_one(train):
    few = train.subset([0, 1, 2])
    enlarged = replace(few, scale=torch.tensor([0.5, 1.0, 2.0]))
    assert few.scale.tolist() == [1, 1, 1] and enlarged.subset([2, 0]).scale.tolist() == [2, 0.5]
    assert replace(few, scale=torch.ones(3)).fingerprint == few.fingerprint != enlarged.fingerprint


def test_scenes_at_their_own_size_keep_the_name_they_always_had():
    """Artifacts are found by it: another way to reckon it would orphan those that ship."""
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    scenes = SceneSet(pixels, [torch.full((1, 4), 0.5)], [torch.tensor([1])], ("a", "b"))
    assert scenes.fingerprint == "a7fb3e7e4631c189"


def test_the_ledger_counts_scenes_and_refuses_undeclared_ones(train):
    with ledger.stage("teacher", {"aerial/train": "training"}) as seen:
        _ = train.subset(range(30)).images, train.subset(range(20, 40)).images
    assert seen.entries() == [
        {"stage": "teacher", "split": "aerial/train", "purpose": "training", "images": 40}
    ]
    with ledger.stage("student"), pytest.raises(ledger.LedgerError, match="may not read"):
        _ = train.images


def test_synthetic_scenes_belong_to_no_data_set():
    synthetic = generate_scenes(4, size=64, split="synthetic")
    with ledger.stage("student"):
        assert synthetic.split is None and len(synthetic.images) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda scenes: {"boxes": scenes.boxes[:-1]},
        lambda scenes: {"labels": scenes.labels[:-1]},
        lambda scenes: {"pixels": scenes.pixels.float()},
        lambda scenes: {"scale": scenes.scale[1:]},
        lambda scenes: {"scale": scenes.scale * 0},
    ],
)
def test_a_broken_set_is_refused(train, change):
    with pytest.raises(WorkbenchError, match="not whole"):
        replace(train, **change(train))
