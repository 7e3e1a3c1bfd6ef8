"""The ledger counts real images and refuses undeclared reads, through the library or round it."""

import gzip
import os

import numpy as np
import pytest
import torch

from dfkd_lib.core import learned_from, ledger, most_images
from dfkd_lib.core.ledger import LedgerError
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.training import reads_of


def test_distinct_images_are_counted_once():
    pixels, split = torch.zeros(6, 1, 4, 4, dtype=torch.uint8), "toy/train"
    images = ImageSet(pixels, torch.arange(6) % 2, ("a", "b"), split, split)
    with ledger.stage("s", {"toy/train": "training", "toy/test": ledger.EVALUATION}) as seen:
        images.subset([0, 1, 2]).images
        images.subset([2, 3]).images
        images.subset([2, 3]).images
    unread = {"stage": "s", "split": "toy/test", "purpose": ledger.EVALUATION, "images": 0}
    counted = {"stage": "s", "split": "toy/train", "purpose": "training", "images": 4}
    assert seen.entries() == [unread, counted]


def test_held_out_images_of_a_split_count_under_their_own_purpose():
    pixels, split = torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8), "held/train"
    images = ImageSet(pixels, torch.arange(10) % 2, ("a", "b"), split, split)
    learns, held = images.subset(range(7)), images.subset([7, 8, 9])
    reads = reads_of((learns, "training"), (held, ledger.EVALUATION))
    with ledger.stage("s", reads) as seen:
        learns.images
        held.subset([0, 2]).images
    assert [(row["purpose"], row["images"]) for row in seen.entries()] == [
        ("training", 7),
        ("evaluation", 2),
    ]
    assert seen.learns and learned_from(most_images(seen.entries())) == 7
    assert reads_of((learns, "training"), (held, "training")) == {split: "training"}
    with pytest.raises(LedgerError, match=r"held/train \(training, evaluation\)"):
        seen.refuse("real images", "other/train")


def test_synthetic_images_are_free():
    free = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    with ledger.stage("data-free"):
        assert len(free.images) == 2


@pytest.mark.parametrize(
    "opener",
    [open, gzip.open, os.open, np.fromfile],
    ids=["open", "gzip.open", "os.open", "numpy.fromfile"],
)
def test_reading_round_the_library_raises(opener, tmp_path):
    secret = tmp_path / "train" / "0.bin"
    secret.parent.mkdir()
    secret.write_bytes(b"pixels")
    ledger.register_files({secret.parent: "secret/train"})
    how = {os.open: (os.O_RDONLY,), np.fromfile: (np.uint8,)}.get(opener, ())
    with pytest.raises(LedgerError, match="secret/train"), ledger.stage("data-free"):
        opener(secret, *how)


def test_mnist_files_cannot_be_opened_in_a_data_free_stage():
    load_images("mnist", "test")
    with (
        pytest.raises(LedgerError, match="mnist/train"),
        ledger.stage("data-free", {"mnist/test": ledger.EVALUATION}),
    ):
        load_images("mnist", "train")


def test_unregistered_files_of_the_data_folder_are_refused(tmp_path):
    (tmp_path / "artifacts").mkdir()
    for name in ("unknown.bin", "artifacts/known.bin"):
        (tmp_path / name).write_bytes(b"x")
    ledger.register_root(tmp_path, free=("artifacts",))
    with ledger.stage("data-free"):
        assert (tmp_path / "artifacts/known.bin").read_bytes() == b"x"
        with pytest.raises(LedgerError, match="unknown.bin"):
            (tmp_path / "unknown.bin").read_bytes()


def test_stages_do_not_nest_and_end_after_an_error():
    with pytest.raises(LedgerError, match="inside"), ledger.stage("outer"), ledger.stage("inner"):
        pass
    with ledger.stage("next") as seen:
        assert seen.name == "next"


def test_links_and_update_modes_do_not_hide_a_read(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.bin").write_bytes(b"pixels")
    (tmp_path / "link").symlink_to(tmp_path / "train")
    ledger.register_files({tmp_path / "link": "linked/train"})
    for path, mode in (
        (tmp_path / "train" / "0.bin", "rb"),
        (tmp_path / "link" / "0.bin", "rb"),
        (tmp_path / "train" / "0.bin", "ab+"),
    ):
        with pytest.raises(LedgerError, match="linked/train"), ledger.stage("data-free"):
            open(path, mode)


def test_a_store_inside_the_data_folder_is_free(tmp_path):
    from dfkd_lib.core.artifacts import Store

    ledger.register_root(tmp_path)
    store = Store(tmp_path / "elsewhere")
    store.get_or_make("stage", {}, lambda work: (work / "a.txt").write_text("a") and None)
    with ledger.stage("data-free"):
        assert next(store.root.glob("stage-*/a.txt")).read_text() == "a"


def test_real_data_inside_a_folder_of_artifacts_stays_real(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.bin").write_bytes(b"pixels")
    ledger.register_root(tmp_path / "data")
    ledger.register_free(tmp_path)
    with pytest.raises(LedgerError, match="0.bin"), ledger.stage("data-free"):
        (tmp_path / "data" / "0.bin").read_bytes()
