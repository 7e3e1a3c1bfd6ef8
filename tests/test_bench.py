"""The bench measures every step through the real loop, and compares attention only where all find the same."""

import re

import pytest
import torch

from dfkd_lib import bench
from dfkd_lib.bench import attention, detection, frechet, memory, students, synthesis, training
from dfkd_lib.errors import WorkbenchError

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
CASE, CPU = attention.Case("deit_tiny_patch16_224", 32, 2, 0), torch.device("cpu")


def test_the_table_has_a_positive_speed_for_each_step(monkeypatch, capsys):
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "STEPS", 1)
    monkeypatch.setattr(attention, "CASES", ())
    monkeypatch.setattr(detection, "CASES", ())
    monkeypatch.setattr(memory, "SIZES", ())
    monkeypatch.setattr(frechet, "SIZES", ())
    monkeypatch.setattr(synthesis, "IMAGES", 0)
    monkeypatch.setattr(synthesis, "BATCH", 4)
    monkeypatch.setattr(synthesis, "PAIRS", 2)
    monkeypatch.setattr(students, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(students, "TEACHER", "vit_mnist_small")
    monkeypatch.setattr(students, "STUDENT", "vit_mnist_smoke")
    monkeypatch.setenv("DFKD_PROGRESS", "none")
    bench.print_table(repeats=1)
    lines = capsys.readouterr().out.splitlines()
    names = ("teacher, cross entropy", "student, KD + CE + patch", "GAN, vanilla", "GAN, augmented")
    for name in names:
        (line,) = [line for line in lines if line.startswith(name)]
        speed, ratio = map(float, line.removeprefix(name).split())
        assert speed > 0 and ratio > 0
    shares = [re.findall(r"[\d.]+", line) for line in lines if line.startswith("attention on ")]
    assert [float(numbers[0]) for numbers in shares] == [1.0, 0.25]
    vanilla, augmented, ratio = map(float, shares[0][1:])
    assert vanilla > 0 and ratio == pytest.approx(augmented / vanilla, abs=0.01 + (1 + ratio) / vanilla)  # printed rounded
    assert lines[-1].startswith("last make report: ")


def test_every_way_to_attention_is_timed_and_finds_the_same():
    from timm.layers import use_fused_attn

    before = use_fused_attn()
    rows, difference = attention.compare(CASE, CPU, least=5, **TINY)
    assert use_fused_attn() == before and 0 < difference < 1e-5
    assert all(row.milliseconds > 0 and row.low <= row.ratio <= row.high for row in rows)
    times = {row.method: row.times for row in rows}
    assert times["our probes"] == times[attention.TIMM] == 5 and times["our maps"] == 2 and len(times) == 8
    assert all(row.low == row.high == 1 for row in rows if row.method in (attention.TIMM, attention.HUB))


def test_what_is_compared_is_far_from_even():
    ways, images = attention.methods(CASE, CPU, **TINY), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for name in ("our maps", "transformers, eager maps"):
            maps = ways.run[name](images)
            assert maps.shape == (2, 2, 3, 5, 5) and (maps - 1 / 5).abs().max() > 0.01


def test_a_capture_unlike_the_peers_is_refused(monkeypatch):
    real = attention._captured
    monkeypatch.setattr(attention, "_captured", lambda *args: real(*args) * 1.01)
    with pytest.raises(WorkbenchError, match="not what another library finds"):
        attention.compare(CASE, CPU, **TINY)


def test_the_memory_of_class_probes_is_measured_apart():
    assert 0 < memory.growth_apart(300) < 2000


def test_the_memory_of_made_images_is_measured_apart(monkeypatch):
    monkeypatch.setenv("DFKD_PROGRESS", "none")
    found = synthesis.memory_apart(300)
    assert 50 < found["before"] and 0 < found["making"] < 2000 and 0 < found["learning"] < 2000


def test_both_arms_of_the_gan_are_timed_as_often(monkeypatch):
    seen = []

    def gan_step(generator, discriminator, teacher, probes, lam, side, steps, share):
        def step(batch, progress):
            seen.append((lam, progress))
            for name, module in (("discriminator", discriminator), ("generator", generator)):
                yield name, {"loss": sum(p.square().sum() for p in module.parameters())}

        return step

    for name, value in {"gan_step": gan_step, "BATCH": 2, "PAIRS": 3, "Generator": lambda k, c: torch.nn.Linear(1, 1),
                        "Discriminator": lambda k, c: torch.nn.Linear(1, 1), "TEACHER": "vit_mnist_smoke"}.items():
        monkeypatch.setattr(synthesis, name, value)
    found = synthesis.gan_steps()
    assert [lam for lam, _ in seen] == [0.0, 1.0] * 6 and found.ratio == found.augmented / found.vanilla > 0
    assert [progress for lam, progress in seen if lam == 0] == pytest.approx([0, 1 / 3, 2 / 3] * 2)
