"""Class probes with spread, explanations, statistics and agreement, against plain computations and planted attention."""

import math

import pytest
import torch
from eager import eager, sharpen
from scipy import stats
from torch import nn

from dfkd_lib import attention
from dfkd_lib.attention.moments import Moments
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_detector, create_model, hooked


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return sharpen(create_model("vit_mnist_smoke"), 0.2).requires_grad_(False)


IMAGES = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(20) % 3
FLOATS = IMAGES.float() / 127.5 - 1


def test_moments_are_those_of_all_rows():
    rows = torch.randn(50, 4, dtype=torch.float64) * 3 + 1000
    for size in (1, 7, 50):
        moments = Moments()
        for part in rows.split(size):
            moments.add(part)
        assert torch.allclose(moments.mean, rows.mean(0))
        assert torch.allclose(moments.std, rows.std(0), rtol=1e-9)
    one = Moments()
    one.add(rows[:1])
    assert one.std.isnan().all()


@pytest.mark.parametrize("size", [1, 6, 20])
def test_class_probes_and_their_spread_however_batched(vit, size):
    probes = attention.attention_probes(vit, FLOATS).mean(2).transpose(0, 1)  # (images, blocks, N)
    found = attention.class_probe_statistics(
        vit, attention.in_batches(IMAGES, LABELS, size), 3, block=None
    )
    last = attention.class_probe_statistics(
        vit, attention.in_batches(IMAGES, LABELS, size), 3, probe=lambda rows: rows[:, 1]
    )
    for k in range(3):
        mine = probes[LABELS == k]
        assert torch.allclose(found.mean[k], mine.mean(0), atol=1e-6)
        assert torch.allclose(found.std[k], mine.std(0), atol=1e-6) and found.count[k] == len(mine)
        head = attention.attention_probe(vit, FLOATS[LABELS == k], head=1)
        assert torch.allclose(last.mean[k], head.mean(0), atol=1e-6)
    whole = attention.class_attention_probe(vit, IMAGES, LABELS, 3)
    assert torch.allclose(whole, found.mean[:, -1], atol=1e-6)


@pytest.mark.parametrize(
    "labels, classes, words",
    [
        ([0, 0, 2], 3, r"no image of class \[1\]"),
        ([0, 1, 3], 3, "out of range"),
        ([0, -1, 1], 2, "out of range"),
    ],
)
def test_classes_that_do_not_fit(vit, labels, classes, words):
    with pytest.raises(WorkbenchError, match=words):
        attention.class_probe_statistics(vit, [(IMAGES[:3], torch.tensor(labels))], classes)


def test_rollout_by_hand(vit):
    _, (first, second) = eager(vit, FLOATS[:3])
    eye = torch.eye(50)
    by_hand = ((second.mean(1) + eye) / 2) @ ((first.mean(1) + eye) / 2)
    found = attention.attention_rollout(vit, FLOATS[:3])
    assert torch.allclose(found, by_hand[:, 0, 1:], atol=1e-6)
    assert torch.allclose(
        attention.attention_rollout(vit, FLOATS[:3], token=4), by_hand[:, 5, 1:], atol=1e-6
    )


def test_gradient_attention_by_hand(vit):
    logits, maps = eager(vit, FLOATS[:3], build_graph=True)
    for target in (None, 4, torch.tensor([1, 2, 3])):
        chosen = logits.argmax(1) if target is None else torch.as_tensor(target).expand(3)
        gradients = torch.autograd.grad(
            logits[torch.arange(3), chosen].sum(), maps, retain_graph=True
        )
        reached = torch.eye(50).expand(3, 50, 50)
        for a, g in zip(maps, gradients, strict=True):
            reached = reached + (a * g).detach().clamp(min=0).mean(1) @ reached
        found = attention.gradient_attention(vit, FLOATS[:3], target)
        assert found.std() > 0 and torch.allclose(found, reached[:, 0, 1:], atol=1e-5)


def test_legrad_by_hand(vit):
    """Tokens of every block, classified; the gradient of that logit by the block's map, its positive part alone."""
    outputs: list = []
    with hooked(vit.blocks, lambda _, __, output: outputs.append(output)):
        logits, maps = eager(vit, FLOATS[:3], build_graph=True)
    for target in (None, 4, torch.tensor([1, 2, 3])):
        chosen = logits.argmax(1) if target is None else torch.as_tensor(target).expand(3)
        total = torch.zeros(3, 49)
        for tokens, a in zip(outputs, maps, strict=True):
            score = vit.forward_head(vit.norm(tokens))[torch.arange(3), chosen].sum()
            (gradient,) = torch.autograd.grad(score, [a], retain_graph=True)
            total += gradient.clamp(min=0).mean((1, 2))[:, 1:] / len(maps)
        with torch.inference_mode():
            found = attention.legrad(vit, FLOATS[:3].clone(), target)
        assert found.std() > 0 and torch.allclose(found, total, atol=1e-6)
    assert torch.equal(vit(FLOATS[:3]), vit(FLOATS[:3])) and "forward" not in vars(vit.blocks[0])


def test_gradient_attention_works_in_inference_mode_and_touches_no_gradient(vit):
    expected = attention.gradient_attention(vit, FLOATS[:2])
    with torch.inference_mode():
        found = attention.gradient_attention(vit, FLOATS[:2].clone())
    assert torch.allclose(found, expected) and not found.requires_grad
    model = create_model("vit_mnist_smoke").eval()
    attention.gradient_attention(model, FLOATS[:2])
    assert all(p.grad is None for p in model.parameters())


def test_gradient_attention_finds_the_patch_that_decides():
    """A model whose class token looks everywhere alike but whose logit rests on patch 17 alone."""

    class Planted(nn.Module):
        cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        num_prefix_tokens = 1

        def __init__(self):
            super().__init__()
            self.attention = PlantedAttention()

        def forward(self, images):
            return self.attention(images)[:, 0, :2]

    class PlantedAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images):
            value = torch.zeros(len(images), 1, 50, 4)
            value[:, :, 18, 0] = 1.0
            query = torch.zeros(len(images), 1, 50, 4) * images.mean() * self.weight
            return torch.nn.functional.scaled_dot_product_attention(query, query, value)[:, 0]

    model = Planted().eval()
    relevance = attention.gradient_attention(model, FLOATS[:2], target=0)
    assert relevance.argmax(1).tolist() == [17, 17] and (relevance > 1e-6).sum() == 2
    assert torch.allclose(attention.attention_probe(model, FLOATS[:2]), torch.full((2, 49), 1 / 50))


def test_relevance_of_a_detection_by_hand():
    torch.manual_seed(0)
    detector = create_detector("detr_nano", 3).eval().requires_grad_(False)
    images = torch.rand(1, 3, 48, 48)
    found = attention.detection_relevance(detector, images, 2, label=1)
    pixels = images.clone().requires_grad_()
    with (
        attention.capture_attention(detector, None, None, through=True) as encoder,
        attention.capture_attention(detector, None, None, kind="decoder", through=True) as decoder,
        attention.capture_attention(detector, None, None, kind="cross", through=True) as cross,
    ):
        logit = detector(pixels).logits[0, 2, 1]

    def bar(a):
        (g,) = torch.autograd.grad(logit, [a], retain_graph=True, allow_unused=True)
        return torch.zeros_like(a[0, 0]) if g is None else (g * a).clamp(min=0).mean(1)[0].detach()

    def unit(r):
        rest = r - torch.eye(len(r))
        return rest / rest.sum(-1, keepdim=True).clamp(min=1e-12) + torch.eye(len(r))

    tokens, queries = encoder[0].shape[-1], decoder[0].shape[-1]
    r_image, r_query, r_cross = torch.eye(tokens), torch.eye(queries), torch.zeros(queries, tokens)
    for a in encoder.values():
        r_image = r_image + bar(a) @ r_image
    for own, over in zip(decoder.values(), cross.values(), strict=True):
        r_query, r_cross = r_query + bar(own) @ r_query, r_cross + bar(own) @ r_cross
        r_cross = r_cross + unit(r_query).T @ bar(over) @ unit(r_image)
    assert found.shape == (1, tokens)
    assert found.max() > 0
    assert torch.allclose(found[0], r_cross[2], rtol=1e-4, atol=1e-9)
    with pytest.raises(WorkbenchError, match="no such query"):
        attention.detection_relevance(detector, images, 10)


def test_statistics_by_hand(vit):
    found = attention.attention_statistics(vit, attention.in_batches(IMAGES, LABELS, 7))
    _, maps = eager(vit, FLOATS)
    for block, whole in enumerate(maps):
        among = whole[:, :, 1:, 1:] / whole[:, :, 1:, 1:].sum(-1, keepdim=True)
        places = torch.tensor([[4.0 * (i // 7), 4.0 * (i % 7)] for i in range(49)])
        far = (places[:, None] - places[None]).norm(dim=-1)
        distance = (among * far).sum(-1).mean(-1)
        assert torch.allclose(found.distance[block], distance.mean(0), atol=1e-4)
        entropy = -(among * among.log()).sum(-1).mean(-1)
        assert torch.allclose(found.entropy[block], entropy.mean(0), atol=1e-4)
        p, q = (x / x.sum(-1, keepdim=True) for x in (whole[:, 0, 0, 1:], whole[:, 1, 0, 1:]))
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        assert torch.allclose(found.diversity[block], js.mean(), atol=1e-5)
    assert (found.entropy <= math.log(49)).all()


def test_statistics_at_their_ends():
    even, sharp = torch.full((4,), 0.25), torch.tensor([1.0, 0.0, 0.0, 0.0])
    other = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert attention.jensen_shannon(sharp, other).item() == pytest.approx(math.log(2))
    assert attention.jensen_shannon(even, even * 3).item() == pytest.approx(0, abs=1e-7)
    model = create_model("vit_mnist_smoke", heads=1).eval()
    found = attention.attention_statistics(model, [(IMAGES, LABELS)])
    assert found.diversity.isnan().all()  # a single head differs from no other
    with pytest.raises(WorkbenchError, match="no image"):
        attention.attention_statistics(model, [])


def test_rank_correlation_is_spearmans():
    torch.manual_seed(0)
    a, b = torch.randn(5, 30), torch.randn(5, 30)
    a[:, :10] = a[:, :1]  # ties
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert attention.rank_correlation(a, b).tolist() == pytest.approx(expected, abs=1e-5)


def test_agreement_by_class(vit):
    torch.manual_seed(3)
    other = create_model("vit_mnist_mini_patch7").eval()
    found = attention.probe_agreement(other, vit, attention.in_batches(IMAGES, LABELS, 6), 3)
    mine = attention.attention_probe(other, FLOATS)
    theirs = attention.resize_probe(attention.attention_probe(vit, FLOATS), 16)
    cosine = torch.cosine_similarity(mine, theirs)[LABELS == 1]
    half = stats.t.ppf(0.975, len(cosine) - 1) * cosine.std() / len(cosine) ** 0.5
    assert found.mean[0, 1] == pytest.approx(cosine.mean().item(), abs=1e-5)
    assert found.half[0, 1] == pytest.approx(half.item(), abs=1e-5)
    assert found.count.tolist() == [7, 7, 6]
    same = attention.probe_agreement(vit, vit, [(IMAGES, LABELS)], 3)
    assert torch.allclose(same.mean, torch.tensor([[1.0], [1.0], [0.0]]).expand(3, 3), atol=1e-5)
    with pytest.raises(WorkbenchError, match=r"no image of class \[3\]"):
        attention.probe_agreement(vit, vit, [(IMAGES, LABELS)], 4)
