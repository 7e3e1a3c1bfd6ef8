"""Every maker of images through `make_images`: what comes out, what may be read, what survives a kill, what is refused."""

from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfkd_lib import metrics, synthesis, training
from dfkd_lib.attention import attention_probe
from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.core.artifacts import Store
from dfkd_lib.core.ledger import LedgerError
from dfkd_lib.datasets import ImageSet, load_images, to_float, to_uint8
from dfkd_lib.distill import ClassificationConfig, Study
from dfkd_lib.losses import decision_adversarial_loss
from dfkd_lib.models import FieldGenerator, WeightsMissing, create_model
from dfkd_lib.synthesis import (
    CGAN,
    ContrastiveInversion,
    FastGenerator,
    Given,
    GuidedGenerator,
    Inversion,
    MemoryBank,
    PenStrokes,
    canvas,
    contrastive,
    guided,
    inversion,
    make_images,
)
from dfkd_lib.synthesis import rival as from_rival
from dfkd_lib.training import DivergedError, TrainConfig

CLASSES, SHAPE = tuple("0123456789"), (1, 28, 28)
CONFIG = TrainConfig(
    epochs=2, batch_size=8, lr=1e-3, optimizer="adam", betas=(0.5, 0.999), schedule="constant"
)
GAN = CGAN(**CONFIG, lam=1.0, width=16, d_width=4, latent=8)
PLAIN = GuidedGenerator(**CONFIG, steps=2, width=16, latent=8)
ATTENTIVE = PLAIN.replace(attention=1.0)
ADVERSARIAL = PLAIN.replace(adversarial=0.5, student_model="vit_mnist_smoke", bank=24)
INVERSION = Inversion(steps=2, batch_size=16, tv=0.1)
SMALL = {"batch_size": 16, "latent": 8, "width": 16, "batch_norm": 1.0}
MEMORY = ContrastiveInversion(steps=2, **SMALL)
FAST = FastGenerator(rounds=2, inner=2, **SMALL)
RIVAL = {"decision_adversarial": 1.0, "student_model": "cnn_small", "bank": 24, "student_steps": 2}
# name -> (maker, what it is given)
MAKERS = {
    "GAN": (GAN, "vit probes real"),
    "attention": (ATTENTIVE, "vit probes"),
    "adversarial": (ADVERSARIAL, "vit"),
    "strokes": (PLAIN.replace(intra=0.5), "vit"),
    "CNN": (INVERSION.replace(batch_norm=1.0), "cnn"),
    "ViT": (INVERSION.replace(patch_entropy=0.1), "vit"),
    "intra": (INVERSION.replace(intra=1.0, flip=True), "vit"),
    "sparse": (INVERSION.replace(patches=(1.0, 0.3), coarse=2, warm=1), "vit"),
    "compete": (INVERSION.replace(compete=1.0), "vit student"),
    "no strokes": (ADVERSARIAL.replace(strokes=False, ink=0.0, blank=0.0), "vit"),
    "memory": (MEMORY, "cnn"),
    "fast": (FAST, "cnn"),
    "memory against a student": (MEMORY.replace(**RIVAL), "cnn"),
    "fast against a student": (FAST.replace(**RIVAL), "cnn"),
    "pen strokes": (PenStrokes(candidates=2), "vit"),
}


def random_set(count, shape=SHAPE, split=None, classes=CLASSES):
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % len(classes)
    return ImageSet(pixels, labels, classes, f"{count} of {shape}", split)


def model_artifact(store, name, seed=0, **overrides):
    """A classifier that was never trained, as an artifact."""

    def make(work):
        torch.manual_seed(seed)
        model = create_model(name, **overrides)
        # Larger weights than a fresh model's, so that its attention is far from even.
        for p in model.parameters():
            p.data.add_(0.2 * torch.randn_like(p))
        artifacts.save_tensors(work / "model.safetensors", model.state_dict())

    known = {"model": name, "overrides": overrides, "seed": seed}
    known["classes"] = list(CLASSES[: overrides.get("num_classes", 10)])
    return store.get_or_make("teacher", known, make)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A store with teachers, class probes of the ViT, a student, and a set that says it is real."""
    store = Store(tmp_path_factory.mktemp("store"))
    vit, real = model_artifact(store, "vit_mnist_smoke"), random_set(32, split="mnist/train")
    return SimpleNamespace(
        store=store,
        vit=vit,
        cnn=model_artifact(store, "cnn_small", in_chans=1, num_classes=10),
        real=real,
        student=model_artifact(store, "vit_mnist_smoke", 1),
        probes=synthesis.class_probes(store, vit, real),
    )


def given_to(parts, names, **changed):
    teacher, *others = names.split()
    more = {name: getattr(parts, name) for name in others}
    known = {"teacher": getattr(parts, teacher), "classes": CLASSES, "shape": SHAPE}
    return Given(**{**known, **more, **changed})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def finished(store, stage):
    return [key for key in store.keys() if key.startswith(f"{stage}-")]


@pytest.mark.parametrize("name", MAKERS)
def test_images_of_every_maker(parts, store, name):
    """Even over the classes, found again by key, the same anew from one seed and others from another."""
    maker, names = MAKERS[name]
    given = given_to(parts, names)
    images, kept = make_images(parts.store, maker, given, 20, seed=3)
    assert images.pixels.shape == (20, *SHAPE) and images.pixels.dtype == torch.uint8
    assert torch.bincount(images.labels).tolist() == [2] * 10 and images.classes == CLASSES
    assert len(images.pixels.unique()) > 1 and not images.real
    assert kept.ledger == [] and kept.manifest["data_free"]
    assert kept.metrics == {"images": 20, "maker": maker.budget}
    again, found = make_images(parts.store, maker, given, 20, seed=3)
    assert found.cached and found.key == kept.key and torch.equal(again.pixels, images.pixels)
    anew, made = make_images(store, maker, given, 20, seed=3)
    assert not made.cached and made.key == kept.key and torch.equal(anew.pixels, images.pixels)
    other, different = make_images(parts.store, maker, given, 20, seed=4)
    assert different.key != kept.key and not torch.equal(other.pixels, images.pixels)


def test_colour_images_of_32_pixels_in_bf16(parts):
    shape = (3, 32, 32)
    vit = model_artifact(parts.store, "vit_mnist_smoke", img_size=32, in_chans=3)
    cnn = model_artifact(parts.store, "cnn_small", in_chans=3, num_classes=10)
    real = random_set(32, shape, "cifar10/train")
    probes = synthesis.class_probes(parts.store, vit, real)
    given = Given(vit, CLASSES, shape, probes, real)
    for name, (maker, names) in MAKERS.items():
        own = {"student": vit} if name == "compete" else {}
        own |= {"teacher": cnn} if names == "cnn" else {}
        low = maker.replace(precision="bf16") if hasattr(maker, "precision") else maker
        images, _ = make_images(parts.store, low, replace(given, **own), 10)
        assert images.shape == shape and len(images.pixels.unique()) > 1


def test_each_image_is_a_function_of_its_settings(parts):
    """A changed teacher or student gives another key; what a maker does not use gives the same."""
    adversarial, compete = MAKERS["adversarial"][0], MAKERS["compete"][0]

    def made(maker, names, **changed):
        return make_images(parts.store, maker, given_to(parts, names, **changed), 20, 3)[1]

    plain, against = made(adversarial, "vit"), made(compete, "vit student")
    found = made(adversarial, "vit probes real student")
    assert found.key == plain.key and found.cached
    assert made(adversarial, "vit", teacher=parts.student).key != plain.key
    assert made(compete, "vit student", student=parts.vit).key != against.key


def test_pixels_stay_on_disk_and_cannot_be_changed(parts):
    maker, names = MAKERS["ViT"]
    images, kept = make_images(parts.store, maker, given_to(parts, names), 20, seed=3)
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(kept.path / "images.npy") in mapped.read_text()
    before = images.pixels.clone()
    images.pixels.zero_()
    assert torch.equal(synthesis.open_images(kept).pixels, before) and parts.store.find(kept.key)
    with pytest.raises(WorkbenchError, match="make_images"):
        synthesis.open_images(parts.vit)


# The ledger, by trying.

PEEKS = {
    "an image set": lambda: random_set(32, split="mnist/train").images,
    "a file": lambda: open(
        artifacts.resolve("data/mnist/train-images-idx3-ubyte.gz"), "rb"
    ).close(),
}


def spy(monkeypatch, module, name, seen):
    """From now on `seen` is called with a function's arguments before it."""
    honest = getattr(module, name)

    def spied(*args, **options):
        seen(*args)
        return honest(*args, **options)

    monkeypatch.setattr(module, name, spied)


def test_a_guided_generator_compares_each_image_with_the_probe_of_its_own_class(
    parts, store, monkeypatch
):
    """Eq. 4: what the attention loss gets beside an image's probe is the class probe of that image's label."""
    given, asked, labels = given_to(parts, "vit probes"), [], []
    spy(monkeypatch, guided, "attention_consistency_loss", lambda _, probe: asked.append(probe))
    spy(monkeypatch, guided, "diversity_loss", lambda _, drawn: labels.append(drawn))
    ATTENTIVE.train(store, given)
    probes = given.load_probes(given.load_teacher())
    assert len(torch.cat(labels).unique()) > 1 and len(asked) == len(labels) == 4
    for of_class, drawn in zip(asked, labels):
        torch.testing.assert_close(of_class, torch.stack([probes[int(k)] for k in drawn]))


@pytest.mark.parametrize("peek", PEEKS)
@pytest.mark.parametrize(
    "name, module, function, stage",
    [
        ("attention", "guided", "total_variation", "guided_generator"),
        ("adversarial", "guided", "total_variation", "guided_generator"),
        ("GAN", "canvas", "generate", "synthetic"),
        ("CNN", "inversion", "total_variation", "synthetic"),
        ("compete", "inversion", "disagreement", "synthetic"),
    ],
)
def test_neither_training_nor_drawing_may_read_anything_real(
    parts, store, monkeypatch, name, module, function, stage, peek
):
    load_images("mnist", "train")  # tells the ledger where the files lie
    maker, names = MAKERS[name]
    spy(monkeypatch, getattr(synthesis, module), function, lambda *_: PEEKS[peek]())
    with pytest.raises(LedgerError, match=stage):
        make_images(store, maker, given_to(parts, names), 20)
    assert finished(store, stage) == finished(store, "synthetic") == []
    PEEKS[peek]()  # outside a stage everyone may


# What survives a kill.


class Killed(Exception):
    """Stands for a kill."""


def killing(monkeypatch, module, name, at):
    """The `at`-th call of that function from now on, counted from 1, is never finished; returns the calls so far."""
    calls = []

    def count(*args):
        calls.append(args)
        if len(calls) == at:
            raise Killed

    spy(monkeypatch, module, name, count)
    return calls


@pytest.mark.usefixtures("same_code")
@pytest.mark.parametrize(
    "name, module, function",
    [
        ("GAN", "canvas", "generate"),
        ("adversarial", "canvas", "generate"),
        ("ViT", "inversion", "Canvas"),
        ("memory", "contrastive", "Batch"),
        ("memory against a student", "contrastive", "Batch"),
    ],
)
def test_a_broken_off_drawing_goes_on_with_the_next_shard(
    parts, store, monkeypatch, name, module, function
):
    maker, names = MAKERS[name]
    given, kind = given_to(parts, names), type(maker)
    if kind not in (Inversion, ContrastiveInversion):
        monkeypatch.setattr(kind, "shard", 16)
    a_shard = 2 if kind is GuidedGenerator else 1  # calls
    whole, kept = make_images(Store(store.root / "other"), maker, given, 40, seed=1)
    calls = killing(monkeypatch, getattr(synthesis, module), function, 2 * a_shard)
    with pytest.raises(Killed):
        make_images(store, maker, given, 40, seed=1)
    assert finished(store, "synthetic") == []
    before = len(calls)
    images, made = make_images(store, maker, given, 40, seed=1)
    # Two of three shards are left: the first is not drawn again.
    assert len(calls) - before == 2 * a_shard
    assert made.key == kept.key and torch.equal(images.pixels, whole.pixels)
    assert (made.path / "images.npy").read_bytes() == (kept.path / "images.npy").read_bytes()


@pytest.mark.parametrize("maker", [MEMORY, FAST])
def test_images_move_to_where_a_held_student_is_least_sure_of_the_teachers_class(parts, maker):
    """Fang et al. 2021, 2022: the student's weights have no part in it, and it learns what is made."""
    teacher, student = training.load_trained(parts.cnn), create_model("cnn_small", in_chans=1)
    images = (
        torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ).requires_grad_()
    against, labels = maker.replace(**RIVAL, jitter=0), torch.arange(12) % 10
    named, _ = against.named(images, labels, torch.Generator(), teacher, student)
    found = named["decision_adversarial"]
    found.backward()
    assert images.grad is not None and all(p.grad is None for p in student.parameters())
    by_hand = decision_adversarial_loss(student.eval()(images), teacher(images))
    torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("name", ["memory against a student", "fast against a student"])
def test_the_student_learns_what_has_been_made(parts, store, monkeypatch, name):
    apart, far = [], from_rival.kd_loss
    maker, names = MAKERS[name]
    monkeypatch.setattr(
        from_rival, "kd_loss", lambda *args: apart.append(far(*args).item()) or far(*args)
    )
    make_images(store, maker.replace(student_steps=20), given_to(parts, names), 20)
    assert len(apart) == 40 and sum(apart[-5:]) < 0.8 * sum(apart[:5])


def test_a_batch_is_told_from_those_made_before(parts, store, monkeypatch):
    """Fang et al. 2021: negatives are the batch's other images and, up to the memory's size, earlier ones."""
    sizes = []
    spy(monkeypatch, contrastive, "contrastive_loss", lambda a, b, old, t: sizes.append(len(old)))
    maker, given = MEMORY.replace(steps=1, memory=24), given_to(parts, "cnn")
    make_images(store, maker, given, 48)
    assert sizes == [0, 16, 24]
    strong = maker.replace(steps=3, contrast=100.0, lr=0.1)
    draw, again = strong.drawing(None, given), strong.drawing(None, given)
    labels = torch.arange(10)
    again.earlier(random_set(20).images)
    assert not torch.equal(draw(labels, 1), again(labels, 1))


def meta(parts, **changes):
    """A fast maker, its teacher, starting weights, labels with their noise, and a batch's weights and latents."""
    maker, teacher = FAST.replace(jitter=0, **changes), given_to(parts, "cnn").load_teacher()
    torch.manual_seed(0)
    generator = synthesis.plain_generator(10, SHAPE, maker.latent, maker.width)
    labels, random = torch.arange(10), torch.Generator()
    (noise,) = generator.noise(10, torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in generator.named_parameters()}
    ends, latent = maker.fitted(generator, teacher, labels, noise, random)
    assert all(torch.equal(before[name], p) for name, p in generator.named_parameters())

    def loss(weights, latent):
        images = torch.func.functional_call(generator, weights, (labels, latent))
        return maker.total(maker.named(images, labels, random, teacher)[0])["loss"]

    step = maker.step(generator, teacher)
    return (
        generator,
        lambda: step((labels, noise), 0.0)["loss"],
        loss,
        (before, noise),
        (ends, latent),
    )


def test_starting_weights_learn_where_a_batchs_own_steps_lead(parts):
    """FOMAML: the gradient of the starting weights is that at the end of the inner steps."""
    generator, step, loss, (_, noise), (ends, latent) = meta(parts)
    assert not torch.equal(latent, noise)
    at_end = loss(ends, latent)
    wanted = torch.autograd.grad(at_end, list(ends.values()))
    found = step()
    found.backward()
    assert found.item() == pytest.approx(at_end.item(), rel=1e-5)
    for parameter, gradient in zip(generator.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_few_steps_fit_a_batch_to_the_teacher(parts):
    _, _, loss, start, end = meta(parts, inner=20, inner_lr=1e-2)
    assert loss(*end).item() < 0.8 * loss(*start).item()


def test_a_prior_of_strokes_is_named_and_can_be_left_out(parts):
    plain = MAKERS["no strokes"][0]
    assert "prior of strokes" in ADVERSARIAL.budget and "prior of strokes" in ATTENTIVE.budget
    assert plain.budget == "nothing but the teacher"
    assert isinstance(ADVERSARIAL.new_generator(CLASSES, SHAPE), FieldGenerator)
    assert not isinstance(plain.new_generator(CLASSES, SHAPE), FieldGenerator)
    with pytest.raises(WorkbenchError, match="ink=0 and blank=0"):
        ADVERSARIAL.replace(strokes=False)


def test_made_images_may_be_bent_and_textured_otherwise_than_those_of_training(parts, store):
    given = given_to(parts, "vit")
    maker, drawn = PLAIN, PLAIN.replace(drawn_bend=0.0, drawn_texture=0.0)
    of = {one: one.generator(one.train(store, given)) for one in (maker, drawn)}
    assert (of[maker].bend, of[maker].texture) == (1.0, 1.0)
    assert (of[drawn].bend, of[drawn].texture) == (0.0, 0.0)
    weights = [model.state_dict().values() for model in of.values()]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))  # it learned the same


@pytest.mark.parametrize("name", ["no strokes", "memory", "fast"])
def test_images_beyond_the_papers_generator_are_refused(parts, store, name):
    shape = (1, 40, 40)
    teacher = "vit_mnist_smoke" if name == "no strokes" else "cnn_small"
    known = model_artifact(parts.store, teacher, img_size=40, in_chans=1, num_classes=10)
    with pytest.raises(WorkbenchError, match="at most 32 x 32"):
        make_images(store, MAKERS[name][0], Given(known, CLASSES, shape), 10)


def states(trained):
    return {epoch: trained.tensors(name) for epoch, name in synthesis.kept_states(trained).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_generator_killed_after_an_epoch_resumes_bit_for_bit(parts, store, monkeypatch):
    maker, given = ADVERSARIAL.replace(epochs=3), given_to(parts, "vit")
    final = {}

    def spied(store):
        """The trained maker; `final` holds everything that its last checkpoint holds."""

        def see(checkpoint, *_):
            for name, module in checkpoint.modules.items():
                final[name] = {k: v.clone() for k, v in module.state_dict().items()}

        final.clear()
        with monkeypatch.context() as patch:
            spy(patch, training.Checkpoint, "save", see)
            return maker.train(store, given)

    whole = spied(Store(store.root / "other"))
    unbroken = dict(final)
    with monkeypatch.context() as patch:
        killing(patch, guided, "total_variation", 4)  # in the second step of the second epoch
        with pytest.raises(Killed):
            maker.train(store, given)
    resumed = spied(store)
    assert resumed.key == whole.key and set(final) == {"generator", "student", "bank"}
    assert all(same(final[name], unbroken[name]) for name in final)
    assert states(resumed).keys() == states(whole).keys() == {1, 2, 3}
    assert all(same(state, states(whole)[epoch]) for epoch, state in states(resumed).items())
    ignored = {"seconds", "images_per_second"}
    histories = [
        [{k: v for k, v in row.items() if k not in ignored} for row in trained.json("history.json")]
        for trained in (whole, resumed)
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 3


def test_each_epoch_begins_with_new_classes_and_its_state_is_kept(parts, store, monkeypatch):
    maker, renewed = PLAIN.replace(epochs=3, seed=2), []
    spy(monkeypatch, FieldGenerator, "renew", lambda _, seed: renewed.append(seed))
    kept = states(maker.train(store, given_to(parts, "vit")))
    assert renewed == [200_007, 200_008] and kept.keys() == {1, 2, 3}
    for first, second in ((1, 2), (2, 3)):
        moved = (kept[first]["embed.weight"] - kept[second]["embed.weight"]).abs().mean()
        assert moved > 0.5  # those of two generators: standard normal


# Divergence.


def diverging(monkeypatch, module, name, from_call):
    """From that call on, counted from 1, the loss is not a number."""
    calls, honest = [], getattr(module, name)

    def bad(*args, **options):
        calls.append(1)
        found = honest(*args, **options)
        return found * float("nan") if len(calls) >= from_call else found

    monkeypatch.setattr(module, name, bad)


@pytest.mark.usefixtures("same_code")
@pytest.mark.parametrize(
    "name, module, function",
    [
        ("adversarial", "guided", "total_variation"),
        ("GAN", "cgan.losses", "attention_consistency_loss"),
    ],
)
def test_after_divergence_the_last_good_epoch_is_used(
    parts, store, monkeypatch, name, module, function
):
    maker, names = MAKERS[name]
    steps = 4 if name == "GAN" else 2
    # Of 30 epochs the first is not among those kept, so that it must be kept for its own sake.
    epochs = 4 if name == "adversarial" else 30
    maker, given = maker.replace(epochs=epochs), given_to(parts, names)
    short = maker if name == "adversarial" else maker.replace(epochs=1)
    good = short.train(Store(store.root / "other"), given)
    diverging(monkeypatch, attrgetter(module)(synthesis), function, steps + 1)
    trained = maker.train(store, given)
    assert trained.metrics["stopped"] == f"diverged in epoch 2 of {epochs}; epoch 1 is used"
    assert len(trained.json("history.json")) == 1
    assert list(states(trained)) == [1] and same(states(trained)[1], states(good)[1])
    images, _ = make_images(store, maker, given, 10)
    assert torch.equal(images.pixels, maker.drawing(good, given, 1)(images.labels, 0))


@pytest.mark.parametrize(
    "name, module, function",
    [
        ("adversarial", "guided", "total_variation"),
        ("GAN", "cgan.losses", "attention_consistency_loss"),
        ("ViT", "inversion", "total_variation"),
    ],
)
def test_divergence_in_the_first_epoch_is_reported(
    parts, store, monkeypatch, name, module, function
):
    maker, names = MAKERS[name]
    diverging(monkeypatch, attrgetter(module)(synthesis), function, 1)
    with pytest.raises(DivergedError, match="learning rate"):
        make_images(store, maker, given_to(parts, names), 10)
    assert not store.keys()


# Bad input, each with its fix.


@pytest.mark.parametrize(
    "name, names, changed, words",
    [
        ("attention", "cnn probes", {}, "no attention(.|\n)*use a vision transformer"),
        ("attention", "vit", {}, "set the weight of the attention loss to 0"),
        ("GAN", "vit probes", {}, "use a maker that reads none"),
        ("GAN", "vit real", {}, "synthesis.class_probes"),
        ("compete", "vit", {}, "set the weight of the competition to 0"),
        ("CNN", "vit", {}, "use a CNN teacher"),
        ("ViT", "cnn", {}, "use a vision transformer"),
        ("sparse", "cnn", {}, "plain vision transformer|no class token|attention"),
        ("ViT", "vit", {"classes": CLASSES[:7]}, "num_classes"),
        ("ViT", "vit", {"classes": CLASSES[::-1]}, "another order(.|\n)*train one on these"),
        ("ViT", "vit", {"shape": (1, 32, 32)}, "does not take these images(.|\n)*resize"),
        ("ViT", "vit", {"shape": (1, 28, 32)}, "square images(.|\n)*resize the images"),
        ("GAN", "vit probes real", {"shape": (1, 24, 24)}, "resize the images"),
        (
            "GAN",
            "vit probes",
            {"shape": (1, 40, 40), "real": random_set(20, (1, 40, 40))},
            "at most 32(.|\n)*resize the images",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_fix(parts, store, name, names, changed, words):
    with pytest.raises(WorkbenchError, match=words) as error:
        make_images(store, MAKERS[name][0], given_to(parts, names, **changed), 20)
    assert error.value.fix and not store.keys()


def test_probes_that_are_not_the_teachers_are_refused(parts, store):
    coarse = model_artifact(parts.store, "vit_mnist_smoke", patch_size=7)
    turned = random_set(20, classes=CLASSES[::-1])
    for teacher, images, words in (
        (coarse, parts.real, "probes are of another teacher(.|\n)*this teacher"),
        (parts.vit, turned, "in another order"),
    ):
        probes = synthesis.class_probes(parts.store, teacher, images)
        for name, names in (("attention", "vit"), ("GAN", "vit real")):
            with pytest.raises(WorkbenchError, match=words):
                make_images(store, MAKERS[name][0], given_to(parts, names, probes=probes), 20)
    assert not store.keys()


def test_too_few_images(parts, store):
    with pytest.raises(WorkbenchError, match="at least 10, one a class(.|\n)*ask for more"):
        make_images(store, MAKERS["ViT"][0], given_to(parts, "vit"), 9)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: PLAIN.replace(adversarial=1.0), "student_model"),
        (lambda: PLAIN.replace(ce=0.0, tv=0.0, ink=0.0, blank=0.0, diversity=0.0), "above 0"),
        (lambda: Inversion(ce=0.0, tv=0.0, l2=0.0, patch_entropy=0.0), "above 0"),
        (lambda: ADVERSARIAL.replace(bank=7), "bank(.|\n)*8"),
        (lambda: MEMORY.replace(**{**RIVAL, "bank": 7}), "bank(.|\n)*16"),
        (lambda: FAST.replace(decision_adversarial=1.0), "student_model"),
        (lambda: INVERSION.replace(patches=(1.0, 0.0)), "patches"),
    ],
)
def test_impossible_settings(make, words):
    with pytest.raises(WorkbenchError, match=words) as error:
        make()
    assert error.value.where and error.value.fix


def test_an_inversion_shows_the_teacher_fewer_patches(parts, store, monkeypatch):
    """As many tokens as asked for go through its blocks, the attended ones; the canvas is coarse; some start warm."""
    tokens, given = [], given_to(parts, "vit")
    honest = inversion.scores_features_probe

    def watched(teacher, images, probe, patches=None):
        tokens.append(None if patches is None else patches.shape[1])
        return honest(teacher, images, probe, patches)

    monkeypatch.setattr(inversion, "scores_features_probe", watched)
    maker = INVERSION.replace(steps=4, patches=(1.0, 0.5, 0.25, 0.25))
    teacher, images = given.load_teacher(), to_float(random_set(6).pixels)
    chosen = inversion.most_attended(teacher, images, 0.25)
    probe = attention_probe(teacher, images)
    assert chosen.shape == (6, 13) and torch.equal(chosen, probe.topk(13, 1).indices)
    maker.drawing(None, given)(torch.arange(6), 3)
    assert tokens == [None, 25, 13, 13]
    fine, coarse = (
        inversion.Canvas(2, SHAPE, torch.Generator().manual_seed(0), coarse)() for coarse in (1, 2)
    )
    rough = [(i[..., 1:] - i[..., :-1]).abs().mean() for i in (fine, coarse)]
    assert coarse.shape == fine.shape and rough[1] < 0.8 * rough[0]
    cold, warm = (
        maker.replace(steps=1, lr=1e-6, warm=warm).drawing(None, given)(torch.arange(10), 3)
        for warm in (0, 1)
    )
    assert not torch.equal(cold, warm)


def test_feature_networks_without_weights(store, monkeypatch):
    config = ClassificationConfig().override(
        "test_images=60 train_images=60 feature.images=100 feature.epochs=1"
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(store.root))
    monkeypatch.delenv("DFKD_INCEPTION", raising=False)
    with pytest.raises(WorkbenchError, match="download=True"):
        Study(store, config.override("features=inception")).space
    monkeypatch.setenv("HF_HUB_CACHE", str(store.root))
    with pytest.raises(WeightsMissing, match="resnet10t"):
        Study(store, config.override("features=resnet10t")).space
    with pytest.raises(WorkbenchError, match="there is no model"):
        Study(store, config.override("features=no_such_network")).space


# What makers are built of.


def test_one_pass_gives_what_each_alone_gives(parts):
    """Logits, features and probe of one pass are those of the model, of `metrics` and of `attention_probe`, gradients too."""
    teacher = given_to(parts, "vit").load_teacher()
    pixels = random_set(5).pixels
    images, again = (to_float(pixels).requires_grad_() for _ in range(2))
    logits, features, probe = canvas.scores_features_probe(teacher, images, True)
    assert torch.allclose(logits, teacher(images), atol=1e-5)
    assert torch.allclose(features, metrics.features_and_logits(teacher, pixels)[0], atol=1e-5)
    expected = attention_probe(teacher, again)
    assert torch.allclose(probe, expected, atol=1e-6) and probe.std() > 1e-4
    probe.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(images.grad, again.grad, atol=1e-6) and images.grad.abs().max() > 1e-5
    assert canvas.scores_features_probe(teacher, images, False)[2] is None


def test_a_held_student_gives_gradients_to_images_alone_and_goes_on_learning():
    torch.manual_seed(0)
    student = create_model("vit_mnist_smoke").train()
    images = torch.randn(2, 1, 28, 28, requires_grad=True)
    canvas.held_logits(student, images).square().sum().backward()
    assert images.grad.abs().sum() > 0 and all(p.grad is None for p in student.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters())


def test_the_student_learns_and_the_generator_works_against_it(parts):
    """The update of either leaves the other as it is."""
    maker, given = ADVERSARIAL, given_to(parts, "vit")
    torch.manual_seed(0)
    modules, gradients = maker.networks(given), {}
    noise = modules["generator"].noise(8, torch.Generator().manual_seed(0))
    step = maker.step(modules, given.load_teacher(), None)
    for name, losses in step((torch.arange(8), *noise), 0.0):
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        losses["loss"].backward()
        gradients[name] = [
            other
            for other, module in modules.items()
            if any(p.grad is not None for p in module.parameters())
        ]
    assert gradients == {"generator": ["generator"], "student": ["student"]}
    assert int(modules["bank"].seen) == 8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_a_field_generator_draws_at_every_size(side, channels):
    torch.manual_seed(0)
    generator = FieldGenerator(4, channels, side, latent=8, width=32)
    draws = [generator.noise(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    noise, again, other = draws
    assert all(map(torch.equal, noise, again)) and not any(map(torch.equal, noise, other))
    with torch.no_grad():
        images = generator(torch.tensor([0, 1, 3]), *noise)
    assert images.shape == (3, channels, side, side)
    assert images.abs().max() <= 1 and images.std() > 0.05
    shapes = [(3, 8), (3, channels, side, side), (3, side, side, 2), (3, 1, 1, 1)]
    assert [tuple(n.shape) for n in noise] == shapes


def test_a_field_generator_without_bend_or_texture_draws_its_field():
    torch.manual_seed(0)
    generator = FieldGenerator(4, 1, 28, latent=8, width=16, texture=0.0, bend=0.0).eval()
    latent, texture, grid, offset = generator.noise(2)
    straight = torch.nn.functional.affine_grid(
        torch.eye(2, 3)[None].repeat(2, 1, 1), [2, 1, 28, 28], align_corners=False
    )
    assert torch.allclose(grid, straight, atol=1e-6)
    with torch.no_grad():
        drawn = [
            generator(torch.tensor([0, 1]), latent, noise, grid, offset)
            for noise in (texture, 5 * texture)
        ]
    assert torch.equal(*drawn)


def test_a_bank_is_a_ring_and_draws_only_what_it_holds():
    bank = MemoryBank(5, (1, 2, 2), 3)

    def add(*values):
        values = torch.tensor(values)
        bank.add(values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), values[:, None].expand(-1, 3))

    add(-1.0, -0.6, -0.2)
    torch.manual_seed(0)
    images, logits = bank.draw(60)
    assert images.shape == (60, 1, 2, 2)
    assert {round(x, 1) for x in logits[:, 0].tolist()} == {-1.0, -0.6, -0.2}
    assert torch.allclose(images[:, 0, 0, 0], logits[:, 0], atol=1 / 127)
    add(0.2, 0.6, 1.0)
    assert bank.logits[:, 0].tolist() == pytest.approx([1.0, -0.6, -0.2, 0.2, 0.6])
    assert int(bank.seen) == 6 and torch.equal(bank.images[0], to_uint8(torch.ones(1, 2, 2)))
    copy = MemoryBank(5, (1, 2, 2), 3)
    copy.load_state_dict(bank.state_dict())
    assert same(copy.state_dict(), bank.state_dict())
    for one in (bank, copy):
        one.add(torch.zeros(1, 1, 2, 2), torch.zeros(1, 3))
    assert same(copy.state_dict(), bank.state_dict()) and copy.logits[1].tolist() == [0, 0, 0]
