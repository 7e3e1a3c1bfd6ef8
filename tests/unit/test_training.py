"""The loop against plain PyTorch, its schedules, its stop on bad numbers."""

import json
import math

import pytest
import torch
from torch import nn

from dfkd_lib import training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model
from dfkd_lib.training import DivergedError, TensorBatches, TrainConfig
from dfkd_lib.training.checkpoint import Checkpoint

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


@pytest.fixture
def model():
    return linear()


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def squared(model):
    return lambda batch, progress: {"loss": (model(batch[0]) - batch[1]).square().mean()}


def fit(model, step=None, checkpoint=None, label="training", **config):
    """The history of a short training on four batches of eight."""
    config = TrainConfig(**{"epochs": 1, "batch_size": 8, "lr": 0.1, **config})
    batches = TensorBatches((X, Y), config.batch_size)
    how = {"checkpoint": checkpoint, "label": label}
    return training.fit({"m": model}, step or squared(model), batches, config, **how)


@pytest.mark.parametrize("kind, own", [("SGD", {"momentum": 0.5}), ("RMSprop", {})])
def test_same_weights_as_a_plain_loop(model, kind, own):
    plain, how = linear(), {"schedule": "constant", "weight_decay": 0.1}
    history = fit(model, epochs=3, lr=0.05, seed=7, optimizer=kind.lower(), **how, **own)
    optimizer = getattr(torch.optim, kind)(plain.parameters(), 0.05, weight_decay=0.1, **own)
    for epoch in range(3):
        order = torch.randperm(32, generator=torch.Generator().manual_seed(7 * 100_003 + epoch))
        for rows in order.split(8):
            optimizer.zero_grad()
            (plain(X[rows]) - Y[rows]).square().mean().backward()
            optimizer.step()
    assert torch.equal(model.weight, plain.weight) and torch.equal(model.bias, plain.bias)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]


def test_learning_rate_by_hand():
    config = TrainConfig(epochs=10, batch_size=1, lr=1.0, warmup_epochs=2.0)
    for epoch, rate in ((1.0, 0.5), (2.0, 1.0), (6.0, 0.5), (10.0, 0.0)):
        assert training.learning_rate(config, epoch) == pytest.approx(rate, abs=1e-3)
    constant = TrainConfig(epochs=10, batch_size=1, lr=0.3, schedule="constant")
    assert training.learning_rate(constant, 9.0) == 0.3


def test_several_optimizers_update_only_their_own():
    a, b = linear(), linear()
    seen = []

    def step(batch, progress):
        before = b.weight.clone()
        yield "first", {"loss": a(batch[0]).square().mean()}
        seen.append(torch.equal(before, b.weight))
        yield "second", {"loss": b(batch[0]).square().mean(), "extra": torch.tensor(2.0)}

    config = TrainConfig(epochs=1, batch_size=8, lr=0.1, optimizer="sgd")
    optimizers = {"first": ["a"], "second": ["b"]}
    history = training.fit({"a": a, "b": b}, step, TensorBatches((X,), 8), config, optimizers)
    assert all(seen) and not torch.equal(b.weight, linear().weight)
    assert {"first_loss", "second_loss", "extra"} <= set(history[0]) and history[0]["extra"] == 2.0


@pytest.mark.parametrize("put_off", [False, True])  # on a GPU the writing of an epoch may be
def test_a_bad_number_stops_and_keeps_the_last_good_epoch(model, tmp_path, monkeypatch, put_off):
    calls, save = [], Checkpoint.save

    def save_later(self, history, _):
        self.next = math.inf if history[1:] else 0.0
        save(self, history, at_once=False)

    if put_off:
        monkeypatch.setattr(Checkpoint, "save", save_later)

    def step(batch, progress):
        calls.append(1)
        factor = math.nan if len(calls) > 8 else 1.0  # 4 steps an epoch: the third goes bad
        return {"loss": model(batch[0]).square().mean() * factor}

    with pytest.raises(DivergedError, match="epoch 3"):
        fit(model, step, tmp_path, epochs=5, lr=0.01)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(kept["history"]) == 2 and torch.isfinite(kept["modules"]["m"]["weight"]).all()


def test_weights_gone_bad_in_the_last_step_are_no_result(model, tmp_path):
    def step(batch, progress):  # a finite loss with an infinite gradient
        return {"loss": (model.weight.sum() * 0).sqrt() + model(batch[0]).square().mean()}

    with pytest.raises(DivergedError, match="weights are no longer finite"):
        fit(model, step, tmp_path, batch_size=32)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_damaged_checkpoint_is_set_aside_and_the_training_starts_anew(model, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert [row["epoch"] for row in fit(model, checkpoint=tmp_path)] == [1]
    assert "is damaged" in capsys.readouterr().out
    assert (tmp_path / "checkpoint.damaged").read_bytes() == b"not a checkpoint"
    with pytest.raises(WorkbenchError, match="cannot be resumed"):  # whole, but of another model
        fit(nn.Linear(7, 7), checkpoint=tmp_path)


def test_running_out_of_memory_is_one_clear_error(model):
    def step(batch, progress):
        return {"loss": model(batch[0]).sum() + torch.empty(2**50).sum()}

    with pytest.raises(WorkbenchError, match="lower batch_size"):
        fit(model, step)


def test_other_memory_errors_are_not_taken_for_too_little(model):
    def step(batch, progress):
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal") as caught:
        fit(model, step)
    assert not isinstance(caught.value, WorkbenchError)


def test_the_global_generator_is_left_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model)
    assert torch.equal(torch.rand(3), expected)


def test_frozen_parameters_stay(model):
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    fit(model, epochs=2)
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize("tensors", [(X, Y[:3]), (X[:0],)])
def test_batches_of_unequal_or_no_length(tensors):
    with pytest.raises(WorkbenchError, match="one, positive length"):
        TensorBatches(tensors, 8)


def test_a_resumed_training_has_the_threads_it_began_with(tmp_path):
    """Large sums are split by threads and round by how they are split: another number would end in other bits."""
    before, threads = torch.get_num_threads(), []

    def train(count, stop):
        torch.set_num_threads(count)
        model = linear()

        def step(batch, progress):
            threads.append(torch.get_num_threads())
            if stop and progress >= 0.5:
                raise KeyboardInterrupt
            return squared(model)(batch, progress)

        fit(model, step, tmp_path, epochs=4)
        assert torch.get_num_threads() == count

    try:
        with pytest.raises(KeyboardInterrupt):
            train(2, stop=True)
        assert torch.get_num_threads() == 2
        train(1, stop=False)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {2} and len(threads) == 2 * 4 + 1 + 2 * 4


def test_a_progress_file_shows_where_a_training_is(model, tmp_path, monkeypatch):
    path, seen = tmp_path / "progress.json", []
    monkeypatch.setenv("DFKD_PROGRESS_FILE", str(path))
    monkeypatch.setattr("dfkd_lib.training.progress.WRITE_SECONDS", 0.0)

    def step(batch, progress):
        seen.append(json.loads(path.read_text()))
        odd = torch.tensor(math.inf if progress > 0.5 else 1.0)
        return squared(model)(batch, progress) | {"odd": odd}

    with pytest.raises(DivergedError):
        fit(model, step, label="toy", epochs=2)
    places = [(one["epoch"], one["step"]) for one in seen[:6]]
    assert places == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]
    assert seen[0]["left"] is None and seen[2]["left"] > 0 and seen[1]["losses"]["odd"] == 1.0
    assert seen[5]["history"][0]["epoch"] == 1
    assert seen[5]["label"] == "toy" and seen[5]["epochs"] == 2
    assert "odd" not in seen[-1]["losses"]  # JSON knows no infinity


def test_no_weights_move_inside_inference_mode(tiny, monkeypatch):
    """On a GPU they would become tensors that can never learn: every training there broke off so."""
    store, images, _ = tiny
    moved = []

    def to(module, *args, **kwargs):
        moved.append(torch.is_inference_mode_enabled())
        return module

    monkeypatch.setattr(torch.nn.Module, "to", to)
    model = create_model("vit_mnist_smoke")
    training.check_fit(model, images, "the model")
    training.predict(model, images.images)
    assert moved and not any(moved)


def test_a_renewed_optimizer_forgets_its_moments_at_every_epoch():
    """Adam's first step is as long as its rate, whatever the gradient: a hundred times less moves as far only when renewed."""

    def moved(renewed):
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        config = TrainConfig(epochs=2, batch_size=1, lr=0.1, optimizer="adam", schedule="constant")
        batches = training.TensorBatches((torch.ones(1, 1),), 1)

        def step(batch, progress):
            return {"loss": network(batch[0]).sum() * (100.0 if progress < 0.5 else 1.0)}

        training.fit({"network": network}, step, batches, config, renewed=renewed)
        return network.weight.item()

    assert moved(["main"]) == pytest.approx(-0.2, abs=1e-6)
    assert moved([]) > -0.18
