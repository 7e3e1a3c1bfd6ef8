"""The script for one GPU, every stage of it, at a size for a CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load

sys.path.insert(0, str(Path(__file__).parents[1] / "device"))
import paper_cifar10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random images of ten classes of 32 × 32, in two splits."""
    root, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("test", 2)):
        for k in range(10):
            place = root / split / f"class{k}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=generator).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{i}.png")
    return root


def test_every_stage_runs_and_is_found_again(folder, tmp_path, capsys):
    words = ["--data", str(folder), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "s")]
    words += ["--size", "tiny", "--commit", "abc"]
    paper_cifar10.main([*words, "--only", "cnn,teacher"])
    first = json.loads((tmp_path / "out" / "record.json").read_text())
    assert list(first["stages"]) == ["cnn", "teacher"] and first["commit"] == "abc"
    paper_cifar10.main([*words, "--set", "gan.images=20"])
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    stages = record["stages"]
    assert list(stages) == list(paper_cifar10.PAPER)
    assert stages["teacher"]["key"] == first["stages"]["teacher"]["key"]
    for name in ("cnn", "teacher", "student_real", "student_gan"):
        low, high = stages[name]["accuracy_95"]
        assert low <= stages[name]["accuracy"] <= high and stages[name]["share_of_product"] > 0
        assert len(stages[name]["history"]) == stages[name]["settings"]["epochs"]
    assert stages["student_gan"]["train_images"] == 20
    # The student of the GAN reads no real image but for the test; its ancestors' reads stand in the ledger.
    own = [row for row in stages["student_gan"]["ledger"] if row["stage"] == "student_synthetic"]
    assert [row["purpose"] for row in own] == ["evaluation"]
    for name in paper_cifar10.PAPER:
        content = b"".join(f.read_bytes() for f in sorted((tmp_path / "out").glob(f"{name}.*.*")))
        floats = [t for t in load(content).values() if t.is_floating_point()]
        assert floats and all(t.dtype == torch.float16 for t in floats), name
    assert Image.open(tmp_path / "out" / "gan.png").size[0] >= 2 * 34


@pytest.mark.parametrize(
    "words", [["--only", "techer"], ["--set", "teacher=3"], ["--set", "x.y=3"]]
)
def test_a_misspelled_stage_ends_it_before_anything_is_read(words):
    with pytest.raises(SystemExit) as ended:
        paper_cifar10.main(["--data", "nowhere", "--out", "nowhere", *words])
    assert "teacher" in str(ended.value)


def test_the_papers_size_is_refused_without_a_gpu(monkeypatch):
    monkeypatch.setattr(paper_cifar10.training, "device", lambda: torch.device("cpu"))
    with pytest.raises(SystemExit, match="want a GPU"):
        paper_cifar10.main(["--data", "nowhere", "--out", "nowhere"])


def test_the_settings_are_the_papers():
    """A Table 3 for the student, Table 1 for the GAN, by the classes' defaults; the counts of A Table 4."""
    from dfkd_lib.distill import StudentConfig
    from dfkd_lib.models import count_parameters, create_model
    from dfkd_lib.synthesis import CGAN

    paper = paper_cifar10.settings("paper", [])
    student = StudentConfig(**paper["student_gan"])
    assert (student.lr, student.betas, student.weight_decay) == (7.5e-4, (0.5, 0.999), 0.025)
    values = {k: v for k, v in paper["gan"].items() if k != "images"}
    gan = CGAN(**values)
    assert (gan.lr, gan.betas, gan.weight_decay) == (1e-4, (0.5, 0.999), 2e-5)
    assert paper["gan"]["images"] == 50_000
    counts = {"teacher": 21_342_346, "student_real": 12_025_450, "cnn": 11_173_962}
    for stage, count in counts.items():
        assert count_parameters(create_model(paper[stage]["model"], num_classes=10)) == count
