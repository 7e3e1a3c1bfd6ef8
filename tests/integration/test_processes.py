"""One training over two real processes (gloo, on the CPU) against one, started by accelerate launch and by torchrun."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import work_processes
from torch import nn

from dfkd_lib import cli
from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.pipeline import make_plan, train
from dfkd_lib.training import Batch, parallel

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "tests" / "support" / "work_processes.py"
TIMES = ("seconds", "images_per_second")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(*words, by: str = "torchrun", timeout: int = 240) -> subprocess.CompletedProcess:
    """Two processes of a script or (-m) a module on this machine alone; they are gone when this returns."""
    starters = {
        "torchrun": "torch.distributed.run --nproc-per-node=2 --master-addr=127.0.0.1 --master-port",
        "accelerate": "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
        "--dynamo_backend=no --main_process_ip=127.0.0.1 --main_process_port",
    }
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    surroundings["DFKD_PROGRESS"] = "lines"
    if sys.platform == "linux":
        surroundings["GLOO_SOCKET_IFNAME"] = "lo"
    with subprocess.Popen(
        [sys.executable, "-m", *starters[by].split(), str(free_port()), *map(str, words)],
        env=surroundings,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            out, errors = started.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            started.terminate()  # a launcher ends its processes
            out, errors = started.communicate()
            pytest.fail(f"no end after {timeout} s\n{out[-3000:]}\n{errors[-3000:]}")
    return subprocess.CompletedProcess(words, started.returncode, out, errors)


def read(folder: Path, part: str, count: int, rank: int) -> dict:
    return json.loads((folder / f"{part}-{count}-{rank}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(folder):
    """What both of two processes saw, and what was printed."""
    ended = launch(WORK, "all", folder, by="accelerate")
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    return [read(folder, "all", 2, rank) for rank in (0, 1)], ended.stdout


@pytest.fixture(scope="module")
def one(folder):
    work_processes.main("all", folder)
    return read(folder, "all", 1, 0)


def same_curves(ours: list[dict], theirs: list[dict], tolerance: float, small: float = 0.0) -> None:
    assert len(ours) == len(theirs) > 0
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for name in set(row) - set(TIMES):
            assert row[name] == pytest.approx(other[name], rel=tolerance, abs=small), (
                row["epoch"],
                name,
            )


def test_a_student_learns_alike_in_two_processes_and_in_one(one, two):
    """Every loss of every epoch (total, KD, CE, patch) within 1e-5 relative: fp32, MNIST, the same 32 images a step."""
    (first, second), _ = two
    mine, theirs = one["students"]["fp32"], first["students"]["fp32"]
    same_curves(mine["history"], theirs["history"], 1e-5)
    assert mine["history"][-1]["loss"] < mine["history"][0]["loss"] and len(mine["history"]) == 3
    # Adam makes of a gradient that is 0 but for rounding a step like any other: such weights differ, to no effect.
    for name, weights in mine["weights"].items():
        assert weights == pytest.approx(theirs["weights"][name], abs=5e-3), name
    assert mine["key"] == theirs["key"]
    assert mine["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.01)
    assert second["students"] == first["students"]  # the other process found what the main one kept


def test_bf16_in_two_processes(one, two):
    mine, theirs = (who["students"]["bf16"]["history"] for who in (one, two[0][0]))
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], rel=2e-3)
    assert theirs[0]["loss"] != two[0][0]["students"]["fp32"]["history"][0]["loss"]


def test_a_detector_learns_alike_though_scenes_hold_unequally_many_objects(one, two):
    """The loss of both epochs within 1e-5 relative, its parts too or within 1e-6 (some are thousandths): normalised by
    the objects of the whole batch."""
    mine, theirs = (who["detector"]["history"] for who in (one, two[0][0]))
    same_curves(mine, theirs, 1e-5, small=1e-6)
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    assert two[0][0]["detector"]["digest"] == two[0][1]["detector"]["digest"]


def test_batch_norms_see_the_whole_batch(one, two):
    same_curves(one["normed"]["history"], two[0][0]["normed"]["history"], 1e-5)
    assert one["normed"]["running"] == pytest.approx(two[0][0]["normed"]["running"], rel=1e-5)
    assert two[0][0]["normed"] == two[0][1]["normed"] | {"history": two[0][0]["normed"]["history"]}


def test_an_artifact_is_made_once_and_found_afterwards(one, two, folder):
    (first, second), printed = two
    for name in ("fp32", "bf16"):
        assert not first["students"][name]["cached"]
        assert first["again"][name]["cached"] and second["again"][name]["cached"]
        assert first["students"][name]["ledger"] == one["students"][name]["ledger"] != []
    # The KD student's and the classifier's: main's alone.
    assert printed.count("student vit_mnist_smoke epoch 1/3") == 2
    assert not list((folder / "all-store2").glob("student-*.partial"))


def test_what_goes_wrong_in_one_goes_wrong_in_all(two):
    (first, second), _ = two
    for name, words in {
        "measuring": "only the main process measures",
        "odd": "cannot be parted evenly",
        "diverged": "no longer a finite number",
        "unlike": "gradients of different parameters",
        "one": "only the last process fails",
        "differ": "not making the same thing",
        "after": "still together",
    }.items():
        assert words in first["refusals"][name] and words in second["refusals"][name], name


def test_a_killed_process_ends_the_run_and_the_next_goes_on(two, folder):
    (folder / "kill").touch()
    ended = launch(WORK, "killed", folder)
    assert ended.returncode != 0 and "epoch 1/3" in ended.stdout and "epoch 2/3" not in ended.stdout
    (folder / "kill").unlink()
    ended = launch(WORK, "killed", folder)
    assert ended.returncode == 0, ended.stderr[-3000:]
    resumed, undisturbed = read(folder, "killed", 2, 0)["killed"], two[0][0]["killed"]
    assert resumed["steps"] == 8 and undisturbed["steps"] == 12
    same_curves(resumed["history"], undisturbed["history"], 0)
    assert resumed["weights"] == undisturbed["weights"]


SMALL = (
    "--profile smoke --only 30 --set 30.seeds=0 --set 30.teacher_synthetic_epochs=0 --set 30.gan_epochs=1 "
    "--set 30.teacher_epochs=1"
).split()


def test_what_train_trained_with_two_processes_run_finds(tmp_path, capsys):
    ended = launch("-m", "dfkd_lib", "train", *SMALL, "--artifacts", tmp_path / "store")
    assert ended.returncode == 0, ended.stderr[-3000:]
    made = sorted(path.name for path in (tmp_path / "store").glob("*-*"))
    stages = {name.split("-")[0] for name in made}
    assert stages >= {"teacher", "cgan", "student_real", "student_synthetic"}
    folders = ["--artifacts", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert cli.main(["run", *SMALL, *folders]) == 0
    assert "epoch" not in capsys.readouterr().out  # nothing was trained
    assert sorted(path.name for path in (tmp_path / "store").glob("*-*")) == made
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["notebooks"].values()
    assert result["status"] == "succeeded"
    assert result["artifacts"] and all(a["cached"] for a in result["artifacts"])


def test_several_processes_may_not_run_notebooks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["run", "--only", "30"]) == 2
    assert "train" in capsys.readouterr().err


def test_train_says_when_there_is_nothing_to_train():
    with pytest.raises(WorkbenchError, match="train nothing"):
        train(make_plan("smoke", only="90"))


def test_train_refuses_what_run_refuses(capsys):
    assert cli.main(["train", "--only", "30", "--set", "30.student_epoch=3"]) == 2
    assert "did you mean 'student.epochs'" in capsys.readouterr().err


def test_rows_are_parted_through_every_kind_of_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    rows, generator = torch.arange(6), torch.Generator()
    whole = Batch(rows, rows, rows, None, rows / 6), {"a": [rows]}, generator, torch.tensor(3)
    batch, named, same, number = parallel.own_rows(whole)
    assert isinstance(batch, Batch) and batch.images.tolist() == [3, 4, 5] and batch.others is None
    assert named["a"][0].tolist() == [3, 4, 5] and same is generator and int(number) == 3
    with pytest.raises(WorkbenchError, match="parted evenly"):
        parallel.own_rows((torch.arange(7),))


def test_one_process_starts_no_group():
    code = (
        "import sys, dfkd_lib.core.artifacts as a\nassert 'torch' not in sys.modules and 'accelerate' not in sys.modules\n"
        "from dfkd_lib.core import processes\nwith processes.together('x'): pass\nassert processes.from_main(lambda: 3) == 3\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=60,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "WORLD_SIZE"} | {"PYTHONPATH": str(ROOT)},
    )


def test_a_count_of_one_process_is_only_kept_from_0():
    assert processes.shared_count(torch.tensor([0, 3])).tolist() == [1, 3]
    assert processes.shared_count(0) == 1


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm2d(4)]
)
def test_the_common_batch_norm_of_one_process_is_torchs(norm):
    """With one process the mean over processes is its own: forward, gradient and running statistics against torch's."""
    shape = (6, 4, 3, 2) if isinstance(norm, nn.BatchNorm2d) else (6, 4)
    x, other = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for _ in range(2)
    )
    common, expected = copy.deepcopy(norm), norm(x)
    with parallel.common_norms([common]):
        got = common(other)
    expected.pow(3).sum().backward()
    got.pow(3).sum().backward()
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(x.grad, other.grad, atol=1e-4)
    kept = common.state_dict()
    assert all(
        torch.allclose(kept[name].float(), value.float(), atol=1e-6)
        for name, value in norm.state_dict().items()
    )
