"""Layouts after a teacher's statistics, inversion of a detector, the moving average of the scene GAN's generator."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from dfkd_lib import detection, losses, presets, training
from dfkd_lib.core import Store
from dfkd_lib.datasets import Scenes, generate_scenes, open_scenes
from dfkd_lib.detection import DetectionStudy, SceneGAN, SceneInversion, padded, sampled_layouts
from dfkd_lib.detection.inversion import hidden
from dfkd_lib.detection.layouts import STATISTICS, _statistics
from dfkd_lib.models import create_detector
from dfkd_lib.synthesis import Canvas

SMALL = (
    "data.size=48 train_scenes=24 test_scenes=8 teacher=train teacher.model=detr_nano teacher.epochs=1 "
    "student.epochs=1 teacher.batch_size=8 batch_size=8 gan.epochs=1 gan.width=16 gan.d_width=8 "
    "gan_scenes=12 gan.precision=fp32 precision=fp32 teacher.precision=fp32 inverted_scenes=6 "
    "inversion.steps=2 inversion.batch_size=4"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return DetectionStudy(store, presets.load("detection", "quick", SMALL))


def test_statistics_are_those_of_the_finds():
    """Three of class 0 with boxes of one size at three places, one of class 1, none of class 2."""
    labels = torch.tensor([[0, 0, 1], [0, 2, 2]])
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).double()
    boxes = torch.full((2, 3, 4), 0.2).double()
    boxes[0, :, 0], boxes[1, 0, 0] = torch.tensor([0.3, 0.5, 0.8]).double(), 0.7
    found = _statistics(weights, labels, boxes, 3)
    torch.testing.assert_close(found["classes"], torch.tensor([3, 1, 1]) / 5)
    size = torch.full((3, 2), 0.2).log()
    torch.testing.assert_close(found["mean"][:, 2:], size)
    places = torch.logit(torch.tensor([[0.3, 0.5, 0.7], [0.8] * 3, [0.3, 0.5, 0.7]]))
    torch.testing.assert_close(found["mean"][:2, 0], places[:2].mean(1), atol=1e-5, rtol=0)
    spread = found["factor"][0] @ found["factor"][0].mT - 0.01 * torch.eye(4)
    assert float(spread[0, 0]) == pytest.approx(float(places[0].var(unbiased=False)), abs=1e-5)
    every = torch.logit(torch.tensor([0.3, 0.5, 0.7, 0.8]))
    assert float(found["mean"][2, 0]) == pytest.approx(float(every.mean()), abs=1e-5)


def test_layouts_follow_the_statistics_and_stay_in_their_scenes():
    counts, classes = torch.tensor([0.25, 0.0, 0.5, 0.25]), torch.tensor([0.75, 0.25])
    mean = torch.tensor([[0.0, 0.0, -2.0, -2.0], [3.0, 3.0, -1.0, -1.0]])
    statistics = {"counts": counts, "classes": classes, "mean": mean}
    statistics["factor"] = torch.eye(4).expand(2, -1, -1) * 0.1
    labels, boxes = sampled_layouts(statistics, 8000, torch.Generator().manual_seed(0))
    there = labels >= 0
    assert labels.shape == (8000, 3) and (there.int().diff(dim=1) <= 0).all(), "objects come first"
    shares = there.sum(1).bincount(minlength=4) / 8000
    torch.testing.assert_close(shares, counts, atol=0.02, rtol=0)
    torch.testing.assert_close(labels[there].bincount() / there.sum(), classes, atol=0.02, rtol=0)
    assert not boxes[~there].any()
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    assert low[there].min() >= -1e-6 and high[there].max() <= 1 + 1e-6
    own = boxes[labels == 0]
    torch.testing.assert_close(own.log().mean(0)[2:], torch.full((2,), -2.0), atol=0.02, rtol=0)
    torch.testing.assert_close(own.mean(0)[:2], torch.full((2,), 0.5), atol=0.01, rtol=0)


def test_layouts_of_noise_read_no_image_and_those_of_scenes_say_so(made):
    noise, seen = made.layouts(None), made.layouts(made.scenes("train"))
    assert noise.ledger == [] and noise.manifest["data_free"]
    assert [(r["split"], r["purpose"]) for r in seen.ledger] == [
        ("aerial/train", "layout statistics")
    ]
    for one in (noise, seen):
        found = one.tensors(STATISTICS)
        assert float(found["counts"].sum()) == pytest.approx(1) and found["classes"].shape == (4,)
    assert float(noise.tensors(STATISTICS)["counts"][0]) == 0, "each scene has an object"


def test_inverted_scenes_read_no_image_and_teach_a_student(made):
    scenes, student = made.inverted(), made.student("inverted")
    assert scenes.ledger == [] and scenes.manifest["data_free"]
    parents = [made.store.find(key) for key in scenes.parents]
    assert [one.stage for one in parents] == ["detection-teacher", "layout_statistics"]
    assert open_scenes(scenes).pixels.shape == (6, 3, 48, 48)
    assert not list(scenes.path.glob("part*"))
    assert {row["split"] for row in student.ledger} == {"aerial/test"}
    assert scenes.key in student.parents
    assert made.inverted().cached


def test_a_gans_scenes_of_the_teachers_layouts(made):
    scenes = made.drawn(made.config.gan, layouts=True)
    assert scenes.key != made.drawn(made.config.gan).key and scenes.manifest["data_free"]
    statistics = made.layouts(made.scenes("train", True)).tensors(STATISTICS)
    random = torch.Generator().manual_seed(made.config.seed)
    labels, _ = sampled_layouts(statistics, 12, random)
    assert torch.equal(scenes.tensors("scenes.safetensors")["labels"], labels)


def test_descent_makes_a_detector_find_what_was_asked_for():
    real = generate_scenes(2, 48, seed=3)
    labels, boxes = padded(real)
    detector = detection.open_shipped("detr_micro_scenes")
    weights = {"classification": 2.0, "boxes": 100.0, "giou": 2.0}
    maker = SceneInversion(steps=25, lr=0.1, tv=1, batch_norm=0.1)

    def loss(images):
        found = detection.queries(detector, images.to(training.device()).float() / 255)
        device = found.logits.device
        target = detection.pair_objects(found, labels.to(device), boxes.to(device))
        named = losses.detection_losses(*found[:2], target.labels, target.boxes)
        return float(sum(weights[name] * value.sum() for name, value in named.items()))

    start = maker.replace(steps=1, lr=1e-6).invert(detector, labels, boxes, 48, weights, 0)
    made = maker.invert(detector, labels, boxes, 48, weights, 0)
    assert loss(made) < 0.7 * loss(start)
    again = maker.invert(detector, labels, boxes, 48, weights, 0)
    assert torch.equal(made, again)


def test_a_detector_with_a_loss_of_its_own_is_inverted_by_that():
    torch.manual_seed(0)
    detector = training.frozen(create_detector("deimv2_atto", 4)).cpu()
    layout = padded(generate_scenes(2, 64, seed=3))
    canvas = Canvas(2, (3, 64, 64), torch.Generator().manual_seed(0), 4, 0.0)
    step = SceneInversion(tv=0, l2=0, batch_norm=0).step(canvas, detector, {"own": 2.0})
    named = step((*layout, torch.zeros(2, 1, 64, 64, dtype=torch.bool)), 0.0)
    own = detection.queries(detector, (canvas() + 1) / 2, objects=layout).own
    torch.testing.assert_close(named["loss"], 2 * own.sum())
    named["loss"].backward()
    assert canvas.pixels.grad.abs().sum() > 0


def test_patches_are_hidden_by_their_share():
    mask = hidden(50, 44, 0.25, torch.Generator().manual_seed(0))
    assert mask.shape == (50, 1, 44, 44) and abs(float(mask.float().mean()) - 0.25) < 0.03
    whole = mask[:, 0, :40, :40].unflatten(1, (5, 8)).unflatten(3, (5, 8)).float().mean((2, 4))
    assert set(whole.flatten().tolist()) == {0.0, 1.0}
    assert not hidden(2, 16, 0.0, torch.Generator()).any()


def test_the_moving_average_draws_and_leaves_the_training_as_it_is(made, tmp_path, monkeypatch):
    """Two steps: the mean is the generator after the first, then decay of it and the rest of the second."""
    states, update = [], AveragedModel.update_parameters

    def remember(mean, model):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        update(mean, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", remember)
    scenes = Scenes.of(generate_scenes(16, 48))
    own = {"epochs": 1, "batch_size": 8, "width": 16, "d_width": 8, "precision": "fp32", "lam": 0.0}
    drawing = {}
    for ema in (0.0, 0.75):
        gan = SceneGAN(**own, ema=ema)
        trained = gan.train(Store(tmp_path), scenes, made.teacher, made.probes)
        drawing[ema] = trained.tensors("generator.safetensors")
    first, second = states
    for name, value in drawing[0.75].items():
        if name.split("_")[-1] in ("mean", "spread") and "." not in name:
            continue  # where codes lie, which is fitted at the end
        assert torch.equal(drawing[0.0][name], second[name]), name
        if value.is_floating_point():
            meant = 0.75 * first[name] + 0.25 * second[name]
            torch.testing.assert_close(value, meant, atol=1e-6, rtol=1e-5)
