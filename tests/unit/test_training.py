"""The loop against plain PyTorch, its schedules, its stop on bad numbers."""

import json
import math

import pytest
import torch
from torch import nn

from dfkd_lib import training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.training import DivergedError, TensorBatches, TrainConfig


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def squared(model):
    return lambda batch, progress: {"loss": (model(batch[0]) - batch[1]).square().mean()}


def test_same_weights_as_a_plain_loop():
    model, plain = linear(), linear()
    config = TrainConfig(
        epochs=3,
        batch_size=8,
        lr=0.05,
        optimizer="sgd",
        momentum=0.5,
        weight_decay=0.1,
        schedule="constant",
        seed=7,
    )
    history = training.fit({"m": model}, squared(model), TensorBatches((X, Y), 8), config)
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.5, weight_decay=0.1)
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
    assert training.learning_rate(config, 1.0) == pytest.approx(0.5, abs=1e-3)
    assert training.learning_rate(config, 2.0) == pytest.approx(1.0)
    assert training.learning_rate(config, 6.0) == pytest.approx(0.5)
    assert training.learning_rate(config, 10.0) == pytest.approx(0.0)
    assert (
        training.learning_rate(
            TrainConfig(epochs=10, batch_size=1, lr=0.3, schedule="constant"), 9.0
        )
        == 0.3
    )


def test_several_optimizers_update_only_their_own():
    a, b = linear(), linear()
    seen = []

    def step(batch, progress):
        before = b.weight.clone()
        yield "first", {"loss": a(batch[0]).square().mean()}
        seen.append(torch.equal(before, b.weight))
        yield "second", {"loss": b(batch[0]).square().mean(), "extra": torch.tensor(2.0)}

    config = TrainConfig(epochs=1, batch_size=8, lr=0.1, optimizer="sgd")
    history = training.fit(
        {"a": a, "b": b}, step, TensorBatches((X,), 8), config, {"first": ["a"], "second": ["b"]}
    )
    assert all(seen) and not torch.equal(b.weight, linear().weight)
    assert {"first_loss", "second_loss", "extra"} <= set(history[0]) and history[0]["extra"] == 2.0


def test_a_bad_number_stops_and_keeps_the_last_good_epoch(tmp_path):
    model = linear()
    calls = {"n": 0}

    def step(batch, progress):
        calls["n"] += 1
        factor = math.nan if calls["n"] > 8 else 1.0  # 4 steps an epoch: the third goes bad
        return {"loss": model(batch[0]).square().mean() * factor}

    with pytest.raises(DivergedError, match="epoch 3"):
        training.fit(
            {"m": model},
            step,
            TensorBatches((X,), 8),
            TrainConfig(epochs=5, batch_size=8, lr=0.01),
            checkpoint=tmp_path,
        )
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(kept["history"]) == 2 and torch.isfinite(kept["modules"]["m"]["weight"]).all()


def test_a_damaged_checkpoint_is_set_aside_and_the_training_starts_anew(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    model = linear()

    def fit(model):
        return training.fit(
            {"m": model},
            squared(model),
            TensorBatches((X, Y), 8),
            TrainConfig(epochs=1, batch_size=8, lr=0.1),
            checkpoint=tmp_path,
        )

    assert [row["epoch"] for row in fit(model)] == [1]
    assert (
        "is damaged" in capsys.readouterr().out
        and (tmp_path / "checkpoint.damaged").read_bytes() == b"not a checkpoint"
    )
    with pytest.raises(WorkbenchError, match="cannot be resumed"):  # whole, but of another model
        fit(torch.nn.Linear(7, 7))


def test_running_out_of_memory_is_one_clear_error():
    model = linear()

    def step(batch, progress):
        return {"loss": model(batch[0]).sum() + torch.empty(2**50).sum()}

    with pytest.raises(WorkbenchError, match="lower batch_size"):
        training.fit(
            {"m": model}, step, TensorBatches((X,), 8), TrainConfig(epochs=1, batch_size=8, lr=0.1)
        )


def test_the_global_generator_is_left_alone():
    model = linear()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.fit(
        {"m": model},
        squared(model),
        TensorBatches((X, Y), 8),
        TrainConfig(epochs=1, batch_size=8, lr=0.1),
    )
    assert torch.equal(torch.rand(3), expected)


def test_frozen_parameters_stay():
    model = linear()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    training.fit(
        {"m": model},
        squared(model),
        TensorBatches((X, Y), 8),
        TrainConfig(epochs=2, batch_size=8, lr=0.1),
    )
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"lr": -1.0},
        {"lr": math.nan},
        {"optimizer": "sdg"},
        {"precision": "fp8"},
        {"schedule": "step"},
        {"batch_size": 0},
    ],
)
def test_impossible_settings(change):
    with pytest.raises(WorkbenchError, match=next(iter(change))):
        TrainConfig(**{"epochs": 1, "batch_size": 1, "lr": 0.1, **change})


def test_batches_of_unequal_or_no_length():
    with pytest.raises(WorkbenchError):
        TensorBatches((X, Y[:3]), 8)
    with pytest.raises(WorkbenchError):
        TensorBatches((X[:0],), 8)


def test_weights_gone_bad_in_the_last_step_are_no_result(tmp_path):
    model = linear()

    def step(batch, progress):  # a finite loss with an infinite gradient
        return {"loss": (model.weight.sum() * 0).sqrt() + model(batch[0]).square().mean()}

    with pytest.raises(DivergedError, match="weights are no longer finite"):
        training.fit(
            {"m": model},
            step,
            TensorBatches((X,), 32),
            TrainConfig(epochs=1, batch_size=32, lr=0.01),
            checkpoint=tmp_path,
        )
    assert not (tmp_path / "checkpoint.pt").exists()


def test_other_memory_words_are_not_taken_for_too_little():
    model = linear()

    def step(batch, progress):
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal") as caught:
        training.fit(
            {"m": model}, step, TensorBatches((X,), 8), TrainConfig(epochs=1, batch_size=8, lr=0.1)
        )
    assert not isinstance(caught.value, WorkbenchError)


def test_a_resumed_training_has_the_threads_it_began_with(tmp_path):
    """Large sums are split by threads and round by how they are split: another number would end in other bits."""
    before, threads = torch.get_num_threads(), []

    class Broken(Exception):
        pass

    def train(count, stop):
        torch.set_num_threads(count)
        model, seen = linear(), []

        def step(batch, progress):
            threads.append(torch.get_num_threads())
            seen.append(progress)
            if stop and progress >= 0.5:
                raise Broken
            return squared(model)(batch, progress)

        try:
            training.fit(
                {"m": model},
                step,
                TensorBatches((X, Y), 8),
                TrainConfig(epochs=4, batch_size=8, lr=0.05),
                checkpoint=tmp_path,
            )
        except Broken:
            pass
        assert torch.get_num_threads() == count

    try:
        train(2, stop=True)
        train(1, stop=False)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {2} and len(threads) == 2 * 4 + 1 + 2 * 4


def test_a_progress_file_tells_where_a_training_is(tmp_path, monkeypatch):
    path, told = tmp_path / "progress.json", []
    monkeypatch.setenv("DFKD_PROGRESS_FILE", str(path))
    monkeypatch.setattr("dfkd_lib.training.progress.WRITE_SECONDS", 0.0)
    model = linear()

    def step(batch, progress):
        told.append(json.loads(path.read_text()))
        return squared(model)(batch, progress) | {
            "odd": torch.tensor(math.inf if progress > 0.5 else 1.0)
        }

    with pytest.raises(DivergedError):
        training.fit(
            {"m": model},
            step,
            TensorBatches((X, Y), 8),
            TrainConfig(epochs=2, batch_size=8, lr=0.05),
            label="toy",
        )
    assert [(t["epoch"], t["step"]) for t in told[:6]] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 0),
        (2, 1),
    ]
    assert told[0]["left"] is None and told[2]["left"] > 0 and told[1]["losses"]["odd"] == 1.0
    assert (
        told[5]["history"][0]["epoch"] == 1 and told[5]["label"] == "toy" and told[5]["epochs"] == 2
    )
    assert "odd" not in told[-1]["losses"]  # JSON knows no infinity
