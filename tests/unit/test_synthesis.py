"""The conditional GAN: two variants that differ in λ alone, images by seed, a ledger that tells them apart."""

import pytest
import torch
from steps import gan_step

from dfkd_lib import attention, synthesis
from dfkd_lib.attention import attention_probe
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store
from dfkd_lib.distill import ClassificationConfig, Study
from dfkd_lib.models import Discriminator, Generator, create_model

TINY = ClassificationConfig().override(
    "teacher=train teacher.model=vit_mnist_smoke teacher.epochs=1 teacher.images=300 test_images=100 train_images=96 "
    "gan.epochs=2 gan.width=16 gan.d_width=4 gan.batch_size=32 gan.lr=1e-3 feature.images=200 feature.epochs=1 fid_images=60 "
    "student.model=vit_mnist_smoke student.epochs=1 student.batch_size=64 student.precision=fp32 real_images=64 "
    "synthetic_images=64"
)


def gan(store, config=TINY, **changes):
    """The trained GAN of a configuration."""
    study = Study(store, config)
    maker = config.gan.replace(**changes)
    return maker.train(store, study.inputs(maker))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def test_padding_and_cropping_are_inverse():
    images = torch.rand(2, 1, 28, 28) * 2 - 1
    padded = synthesis.pad_to_gan(images)  # black is -1
    assert padded.shape == (2, 1, 32, 32) and padded[0, 0, 0, 0] == -1
    assert torch.equal(synthesis.crop_middle(padded, 28), images)


def run_step(lam, share=1.0):
    torch.manual_seed(0)
    generator, discriminator = Generator(10, 1, width=16), Discriminator(10, 1, 4)
    teacher = create_model("vit_mnist_smoke").eval().requires_grad_(False)
    for p in teacher.parameters():
        p.data.add_(torch.randn_like(p) * 0.2)
    torch.manual_seed(1)
    batch, probes, found = (torch.rand(8, 1, 32, 32), torch.arange(8)), torch.rand(10, 49), {}
    step = gan_step(generator, discriminator, teacher, probes, lam, 28, share=share)
    for name, losses in step(batch, 0.0):
        losses["loss"].backward()
        found[name] = losses
    return found, [p.grad.clone() for p in generator.parameters()]


def test_equation_4_compares_each_image_with_the_probe_of_its_own_class():
    """L_attention by hand: the mean of 1 - cos(AP, CAP of the label) over images of given labels."""
    torch.manual_seed(0)
    generator, discriminator = Generator(10, 1, width=16), Discriminator(10, 1, 4)
    teacher = create_model("vit_mnist_smoke").eval()
    probes, wanted = torch.rand(10, 49), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    noise = torch.randn(8, generator.latent)

    class Drawn(synthesis.Networks):
        def draw(self, count):
            return noise, wanted

    nets = Drawn(generator, discriminator, teacher, probes, 28)
    real = torch.rand(8, 1, 32, 32), torch.arange(8)
    _, (_, losses) = synthesis.gan_step(nets, *real, 1.0)
    with torch.no_grad():
        seen = attention_probe(teacher, generator(wanted, noise)[..., 2:-2, 2:-2])
    each = [1 - a @ probes[k] / (a.norm() * probes[k].norm()) for a, k in zip(seen, wanted)]
    assert losses["attention"].item() == pytest.approx(sum(each).item() / 8, rel=1e-4)


def test_the_variants_differ_in_the_attention_term_alone():
    (vanilla, plain_gradients), (augmented, gradients) = run_step(0.0), run_step(2.0)
    assert vanilla["discriminator"] == augmented["discriminator"]
    for key in ("adversarial", "attention"):
        assert vanilla["generator"][key] == augmented["generator"][key]
    total = augmented["generator"]["adversarial"] + 2.0 * augmented["generator"]["attention"]
    assert augmented["generator"]["loss"].item() == pytest.approx(total.item())
    assert any(not torch.equal(a, b) for a, b in zip(plain_gradients, gradients, strict=True))


def test_a_share_of_the_batch_stands_for_the_attention_loss(monkeypatch):
    """On a quarter the teacher looks at two of eight images, and nothing else of the step changes."""
    honest, seen = attention.attention_probe, []

    def spied(teacher, images):
        seen.append(images)
        return honest(teacher, images)

    monkeypatch.setattr(attention, "attention_probe", spied)
    (whole, _), (part, _) = run_step(2.0), run_step(2.0, share=0.25)
    assert [len(images) for images in seen] == [8, 2] and torch.equal(seen[1], seen[0][:2])
    assert part["generator"]["adversarial"].item() == whole["generator"]["adversarial"].item()
    assert part["generator"]["attention"].item() != whole["generator"]["attention"].item()
    assert run_step(2.0, share=0.01)[0]["generator"]["attention"].item() > 0


def test_both_variants_train_from_one_seed_and_are_kept(store):
    vanilla, augmented = gan(store, lam=0.0), gan(store, lam=5.0)
    history = vanilla.json("history.json")
    assert len(history) == 2
    # The attention loss is measured every eighth step, and at least once an epoch.
    wanted = {"adversarial", "attention", "discriminator_loss"}
    assert all(wanted <= set(row) for row in history)
    assert gan(store, lam=0.0).cached and vanilla.metrics["stopped"] == ""
    names = {1: "generator-00001.safetensors", 2: "generator-00002.safetensors"}
    assert synthesis.kept_states(vanilla) == names
    first, other = (made.tensors(names[1]) for made in (vanilla, augmented))
    assert any(not torch.equal(first[k], other[k]) for k in first)
    assert [(row["split"], row["purpose"], row["images"]) for row in vanilla.ledger] == [
        ("mnist/train", "training the discriminator", 96)
    ]


def test_ledger_of_the_students(store):
    real, synthetic = Study(store, TINY).student("real"), Study(store, TINY).student("synthetic")
    evaluated, trained = ("mnist/test", "evaluation", 100), ("mnist/train", "training", 64)
    for student, reads in ((real, {trained, evaluated}), (synthetic, {evaluated})):
        rows = {(row["split"], row["purpose"], row["images"]) for row in student.ledger}
        assert rows == reads
    assert synthetic.manifest["data_free"] and not real.manifest["data_free"]


def test_a_changed_parameter_makes_anew_only_what_depends_on_it(store):
    changed = TINY.override("temperature=2")
    one, other = Study(store, TINY), Study(store, changed)
    assert one.teacher.key == other.teacher.key and one.space.judge.key == other.space.judge.key
    assert gan(store).key == gan(store, changed).key
    assert one.student("synthetic").key != other.student("synthetic").key
    assert gan(store, changed).cached and one.student("synthetic").cached
    assert gan(store).key != gan(store, lam=2.0).key


@pytest.mark.parametrize(
    "change, words",
    [
        ("lam=nan", "lam' is impossible"),
        ("attention_share=0", "attention_share' is impossible"),
        ("teacher=mine", "source' is impossible"),
        ("shipped=none teacher=shipped", "missing"),
    ],
)
def test_impossible_settings(store, change, words):
    with pytest.raises(WorkbenchError, match=words):
        gan(store, TINY.override(change))


def test_a_student_that_cannot_take_the_images_fails_before_a_teacher_is_trained(store):
    with pytest.raises(WorkbenchError, match="multiple of the patch 7"):
        config = TINY.override("data=digits student.model=vit_mnist_mini_patch7 teacher.epochs=99")
        Study(store, config).student("real")


def test_a_generator_of_bad_numbers_is_refused():
    generator = Generator(10, 1, width=16)
    with torch.no_grad():
        generator.layers[0].weight.fill_(float("nan"))
    with pytest.raises(WorkbenchError, match="diverged"):
        synthesis.generate(generator, torch.arange(4), 0, 28)
