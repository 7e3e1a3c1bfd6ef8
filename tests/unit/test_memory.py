"""What is computed so close to a limit of address space that kernels may round differently is not saved."""

import resource

import pytest
import torch

from dfkd_lib import training
from dfkd_lib.core import Store, WorkbenchError, memory

pytestmark = pytest.mark.skipif(not memory.STATUS.exists(), reason="no /proc: no enforced limit")
SPARE = 16 * 2**20  # less than MKL's scratch space may need, more than a tiny training does


@pytest.fixture
def limit():
    """A function that allows so many bytes of address space beyond the most used so far; lifted by None, and at the end."""
    before = resource.getrlimit(resource.RLIMIT_AS)

    def allow(spare: int | None) -> None:
        used = 1024 * int(memory.STATUS.read_text().partition("VmPeak:")[2].split()[0])
        now = before[0] if spare is None else used + spare
        resource.setrlimit(resource.RLIMIT_AS, (now, before[1]))

    yield allow
    allow(None)


def trained(folder, second_epoch=lambda: None) -> tuple[torch.nn.Module, list[dict]]:
    """A small network after three epochs; `second_epoch` is called during the second."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    x = torch.randn(16, 4)

    def step(batch, progress):
        if 1 / 3 <= progress < 2 / 3:
            second_epoch()
        return {"loss": model(batch[0]).square().mean()}

    config = training.TrainConfig(epochs=3, batch_size=8, lr=0.1)
    history = training.fit(
        {"m": model}, step, training.TensorBatches((x,), 8), config, checkpoint=folder
    )
    return model, history


def test_an_epoch_close_to_the_limit_is_not_saved_and_is_trained_anew(tmp_path, limit):
    undisturbed, _ = trained(tmp_path / "undisturbed")
    with pytest.raises(WorkbenchError, match="memory ran out"):
        trained(tmp_path / "limited", lambda: limit(SPARE))
    limit(None)
    saved = training.restore(tmp_path / "limited", {"m": torch.nn.Linear(4, 2)})
    assert [row["epoch"] for row in saved] == [1]
    resumed, history = trained(tmp_path / "limited")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(map(torch.equal, resumed.parameters(), undisturbed.parameters()))


def test_an_artifact_made_close_to_the_limit_is_not_saved(tmp_path, limit):
    store = Store(tmp_path)

    def make(folder):
        (folder / "made.txt").write_text("made")

    limit(SPARE)
    with pytest.raises(WorkbenchError, match="memory ran out"):
        store.get_or_make("thing", {}, make)
    assert not store.keys()
    limit(None)
    assert not store.get_or_make("thing", {}, make).cached


def test_a_limit_with_room_to_spare_refuses_nothing(limit):
    limit(memory.SCRATCH * torch.get_num_threads() + SPARE)
    memory.check()
