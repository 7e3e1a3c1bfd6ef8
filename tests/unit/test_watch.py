"""Attention while a student learns: what is kept is what its model saw, and nothing of its training is another for it."""

import pytest
import torch

from dfkd_lib import attention, distill, plots
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import to_float
from dfkd_lib.models import create_model
from dfkd_lib.training import TensorBatches, TrainConfig, fit, load_trained
from dfkd_lib.training.classifier import Watch

SMALL = distill.StudentConfig(model="vit_mnist_smoke", epochs=2, batch_size=20, lr=5e-3)


def student(tiny, **changes):
    store, images, teacher = tiny
    config = SMALL.replace(**changes)
    return distill.train(store, config, distill.KDWeights(), images, images, teacher)


def test_a_watched_student_is_the_same_under_a_key_of_its_own(tiny, same_code):
    plain, watched = student(tiny), student(tiny, watch=10)
    assert plain.key != watched.key and "watch" not in plain.settings
    assert not (plain.path / "attention.safetensors").exists()
    weights, same = plain.tensors(), watched.tensors()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    kept = watched.tensors("attention.safetensors")
    pixels = to_float(kept["images"])
    assert kept["probes"].shape == (3, 10, 49)
    seen = attention.attention_probe(load_trained(watched), pixels)
    assert torch.equal(kept["probes"][-1], seen)
    torch.manual_seed(0)
    untrained = create_model("vit_mnist_smoke").eval()
    with torch.no_grad():
        assert torch.equal(kept["probes"][0], attention.attention_probe(untrained, pixels))


class Stop(Exception):
    pass


def test_what_was_kept_is_resumed(tmp_path):
    pixels = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)

    def training(folder, stop_after=9):
        torch.manual_seed(0)
        model = create_model("vit_mnist_smoke")
        watch = Watch(model, pixels[:3], 3)
        steps = 0

        def step(batch, progress):
            nonlocal steps
            steps += 1
            if steps > stop_after:
                raise Stop
            return {"loss": model(to_float(batch[0])).square().mean()}

        config = TrainConfig(epochs=3, batch_size=10, lr=1e-2)
        batches = TensorBatches((pixels,), 10)
        fit(
            {"model": model, "watch": watch},
            step,
            batches,
            config,
            evaluate=lambda _: {},
            checkpoint=folder,
        )
        return watch.probes

    whole = training(tmp_path / "whole")
    with pytest.raises(Stop):
        training(tmp_path / "cut", 3)
    assert torch.equal(training(tmp_path / "cut"), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 4  # before, and three epochs


def test_a_network_without_attention_cannot_be_watched():
    with pytest.raises(WorkbenchError, match="no attention"):
        Watch(create_model("cnn_small"), torch.zeros(2, 1, 28, 28, dtype=torch.uint8), 2)


def test_the_strip_begins_before_training_and_ends_with_the_last_epoch():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    figure = plots.attention_by_epoch(images, torch.rand(41, 2, 16))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["before", *(f"epoch {n}" for n in range(5, 41, 5))]
