"""The steps that notebooks show: they compute what the library's own steps compute, and an edit makes a new student."""

from types import SimpleNamespace

import pytest
import torch
from cells import edit_cell, names_of_30, run_cell
from steps import distill_step

from dfkd_lib import attention, distill, losses, synthesis, training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.distill import EarlyConfig, KDWeights, StudentConfig, Targets, TitnConfig
from dfkd_lib.models import Discriminator, EarlyAligner, Generator, create_model
from dfkd_lib.training import Batch


def shown_and_own(config=StudentConfig(), probe=(49,), **weights):
    """A student, its images and targets; the losses of notebook 30's step, and those of the library's."""
    torch.manual_seed(0)
    student = create_model("vit_mnist_smoke")
    batch = Batch(torch.randn(4, 1, 28, 28), torch.arange(4), torch.arange(4))
    target = Targets(torch.randn(4, 10), torch.rand(4, *probe))
    step = run_cell(edit_cell("30_classification_kd.ipynb"), names_of_30(config, **weights))["step"]
    blocks = {"blocks": config.patch_blocks, "block_weights": config.block_weights}
    own = distill_step(student, lambda batch: target, KDWeights(**weights), **blocks)(batch, 0.0)
    return student, batch, target, step(student, batch, lambda batch: target), own


@pytest.mark.parametrize("weights", [{}, {"kd": 0.5, "ce": 2.0, "patch": 3.0, "temperature": 2.0}])
def test_the_step_of_notebook_30_is_the_librarys(weights):
    *_, shown, own = shown_and_own(**weights)
    assert_equal(shown, own)
    assert list(shown) == ["loss", "kd", "ce", "patch"]


def test_the_step_of_notebook_30_matches_the_blocks_that_the_students_settings_name():
    config = StudentConfig(patch_blocks=(0, -1), block_weights=(1.0, 3.0), teacher_blocks=(3, 11))
    student, batch, target, shown, own = shown_and_own(config, (2, 16))
    assert_equal(shown, own)
    probes = [attention.attention_probe(student, batch.images, block) for block in (0, -1)]
    first, last = (
        losses.patch_probe_loss(one, target.probe[:, place]) for place, one in enumerate(probes)
    )
    torch.testing.assert_close(own["patch"], (first + 3 * last) / 4)


def test_what_the_step_of_notebook_30_trains_is_found_by_its_weights_until_it_is_edited():
    source, student = edit_cell("30_classification_kd.ipynb"), StudentConfig()
    names = names_of_30(student, patch=3.0)
    step, λ = run_cell(source, names)["step"], names["λ"]
    assert distill.known_step(step, λ, student) is λ
    assert distill.known_step(step, KDWeights(), student) is step
    assert distill.known_step(step, λ, student.replace(block_weights=(2.0,))) is step
    edited = run_cell(source.replace("λ.kd * kd", "2 * kd"), names)["step"]
    assert distill.known_step(edited, λ, student) is edited


@pytest.mark.parametrize(
    "weights, line",
    [
        ({"patch_mse": 5.0}, "patch_mse_weight=5.0"),
        ({"hard": 1.0, "early": 2.0}, "hard_weight=1.0, early_weight=2.0"),
        ({"schedules": "kd: 1@0 0@1"}, "schedules=kd: 1@0 0@1"),
        ({"patch": 0.0}, ""),
    ],
)
def test_the_step_of_notebook_30_as_it_stands_takes_whatever_weights_are_set(weights, line):
    names, said = names_of_30(**weights), []
    step = run_cell(edit_cell("30_classification_kd.ipynb"), names)["step"]
    assert distill.known_step(step, names["λ"], StudentConfig(), said.append) is names["λ"]
    assert len(said) == bool(line) and all(text.endswith(line) for text in said)


SOFT = "+ λ.soft * losses.kd_loss(logits, target.logits, 1.0)"


@pytest.mark.parametrize("weights", [{"patch_mse": 5.0}, {"schedules": "kd: 1@0 0@1"}])
def test_an_edited_step_that_does_without_a_loss_that_is_set_is_refused(weights):
    source, names = edit_cell("30_classification_kd.ipynb"), names_of_30(**weights)
    step = run_cell(source.replace("λ.kd * kd", "2 * kd"), names)["step"]
    with pytest.raises(WorkbenchError, match="does without losses or schedules") as caught:
        distill.known_step(step, names["λ"], StudentConfig())
    assert next(iter(weights)) in caught.value.got and "leave" in caught.value.fix


@pytest.mark.parametrize(
    "more",
    [SOFT, "+ more(λ, logits)\n\n\ndef more(λ, logits):\n    return λ.soft * logits.mean()\n"],
)
def test_an_edited_step_that_names_a_loss_that_is_set_is_taken(more):
    source, names = edit_cell("30_classification_kd.ipynb"), names_of_30(soft=1.0)
    head, helper = (more + "\n\n\n").split("\n\n\n", 1)
    edited = source.replace("λ.patch * patch", f"λ.patch * patch {head}")
    step = run_cell(f"{helper.strip()}\n{edited}", names)["step"]
    assert distill.known_step(step, names["λ"], StudentConfig()) is step


def assert_equal(shown: dict, own: dict) -> None:
    """The losses of two steps have the same names and values."""
    torch.testing.assert_close(dict(shown), dict(own), rtol=1e-6, atol=0)


def mixed_batch() -> Batch:
    rows = torch.arange(4)
    return Batch(torch.randn(4, 1, 28, 28), rows, rows, rows.flip(0), torch.full((4,), 0.7))


def test_the_step_of_notebook_50_is_the_librarys():
    torch.manual_seed(0)
    student, aligner = create_model("dearkd_small"), EarlyAligner(72, 5)
    target = Targets(torch.randn(4, 10), None, torch.randn(4, 5, 14, 14))
    names = {"__name__": "__main__", "distill": distill, "training": training, "losses": losses}
    names |= {"F": torch.nn.functional, "cfg": EarlyConfig(hard_weight=2.0, early_weight=0.5)}
    step, batch = run_cell(edit_cell("50_early_kd.ipynb"), names)["step"], mixed_batch()
    shown = step(student, batch, lambda batch: target, aligner)
    weights = KDWeights(kd=0, patch=0, hard=2.0, early=0.5)
    assert_equal(shown, distill_step(student, lambda batch: target, weights, aligner)(batch, 0.0))


def test_the_step_of_notebook_60_is_the_librarys():
    torch.manual_seed(0)
    student, target = create_model("titn_small"), Targets(torch.randn(4, 10))
    names = {"__name__": "__main__", "training": training, "losses": losses}
    names["cfg"] = TitnConfig(alpha=0.3)
    step, batch = run_cell(edit_cell("60_titn.ipynb"), names)["step"], mixed_batch()
    shown = step(student, batch, lambda batch: target)
    weights = KDWeights(kd=0, ce=0.3, patch=0, hard=0.7)
    assert_equal(shown, distill_step(student, lambda batch: target, weights)(batch, 0.0))


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_the_step_of_notebook_20_is_the_librarys(lam):
    source = edit_cell("20_gan_fid.ipynb")
    names = {
        "__name__": "__main__",
        "torch": torch,
        "bce": torch.nn.functional.binary_cross_entropy_with_logits,
        "attention": attention,
        "losses": losses,
        "cfg": SimpleNamespace(gan=synthesis.CGAN()),
    }
    found = run_cell(source, names)
    shown = found["gan_step"]
    assert found["gan"]._step is None, (
        "what it trains is found wherever the library makes these GANs"
    )
    edited = run_cell(source.replace("+ lam *", "+ 2 * lam *"), names)["gan"]
    assert edited._step is not None and "2 * lam" in source.replace("+ lam *", "+ 2 * lam *")

    def losses_of(step):
        torch.manual_seed(0)
        teacher = create_model("vit_mnist_smoke").eval().requires_grad_(False)
        probes = torch.rand(10, 49)
        generator, discriminator = Generator(10, 1, width=16), Discriminator(10, 1, 4)
        nets = synthesis.Networks(generator, discriminator, teacher, probes, 28, 0.5)
        real, labels = torch.rand(8, 1, 32, 32), torch.arange(8)
        return {name: found for name, found in step(nets, real, labels, lam)}

    ours, own = losses_of(shown), losses_of(synthesis.gan_step)
    assert ours.keys() == own.keys() == {"discriminator", "generator"}
    for name in ours:
        assert_equal(ours[name], own[name])


def trained(tiny, source: str, **weights):
    store, images, teacher = tiny
    step = run_cell(source, names_of_30(**weights))["step"]
    config = StudentConfig(model="vit_mnist_smoke", epochs=1, batch_size=20, precision="fp32")
    return distill.train(store, config, step, images, images, teacher)


def test_an_edited_step_is_a_new_student_and_an_undone_edit_finds_the_old_one(tiny):
    source = edit_cell("30_classification_kd.ipynb")
    first = trained(tiny, source)
    assert not first.cached and trained(tiny, source).key == first.key
    commented = source.replace("  # eq. 9", "  # the labels")
    assert trained(tiny, commented).key == first.key, "a comment is no edit"
    edited = trained(tiny, source.replace("+ λ.ce * ce", "+ 2 * λ.ce * ce"))
    assert edited.key != first.key and not edited.cached
    warmer = trained(tiny, source, temperature=2.0)
    assert warmer.key not in (first.key, edited.key), "a value that the step uses counts"
    again = trained(tiny, source)
    assert again.key == first.key and again.cached


ENDING = "    return {"


@pytest.mark.parametrize(
    "line, words",
    [
        ("    return {'kd': kd}", "returns no loss"),
        ("    return loss", "returns no loss"),
        ("    return {'loss': loss, 'kd': logits}", "something else than a number"),
        ("    return {'loss': loss.detach()}", "without gradient"),
        ("    batch.images.zero_()\n    return {'loss': loss}", "changes its batch"),
    ],
)
def test_a_step_that_cannot_train_is_refused_with_its_place(tiny, line, words):
    source = edit_cell("30_classification_kd.ipynb")
    head, _, _ = source.rpartition(ENDING)
    with pytest.raises(WorkbenchError, match=words) as caught:
        trained(tiny, head + line + "\n")
    assert "line" in str(caught.value.where) and caught.value.fix


def test_a_step_that_asks_for_what_is_not_there_is_refused(tiny):
    with pytest.raises(WorkbenchError, match="asks for"):
        trained(tiny, "def step(student, batch, teacher, aligner):\n    return {}\n")


def test_the_probe_of_notebook_10_is_the_librarys(tiny):
    """Its class probes are found by the GAN of notebook 20; an edit makes others, and a wrong shape is refused."""
    store, images, teacher = tiny
    source = edit_cell("10_attention_probes.ipynb").split("\n\n\n")[0]
    made = synthesis.class_probes(store, teacher, images)

    def class_probes(text: str):
        reduce_heads = run_cell(text, {"__name__": "__main__"})["reduce_heads"]
        return synthesis.class_probes(store, teacher, images, probe=reduce_heads)

    assert class_probes(source).key == made.key
    edited = class_probes(source.replace("rows.mean(1)", "rows.amax(1)"))
    assert edited.key != made.key
    with pytest.raises(WorkbenchError, match="one number for each image and patch") as caught:
        class_probes(source.replace("rows.mean(1)", "rows.mean(2)"))
    assert caught.value.where == "reduce_heads" and caught.value.fix
