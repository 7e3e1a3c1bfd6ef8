"""Features are what a network's head is given, or its tokens, whatever the batches."""

import pytest
import timm
import torch
from torch import nn

from dfkd_lib import metrics, models
from dfkd_lib.core import WorkbenchError

IMAGES = torch.randint(
    0, 256, (7, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def tiny_vit(**options):
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=28,
        patch_size=7,
        in_chans=1,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=5,
        **options,
    ).eval()


def test_features_are_the_last_layers_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    images = torch.randint(0, 256, (7, 1, 4, 4), dtype=torch.uint8)
    expected = model[:3](images.float() / 127.5 - 1)
    found = metrics.classifier_features(model, images, batch_size=3)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_error_of_absent_inception_weights_names_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("DFKD_INCEPTION", raising=False)
    with pytest.raises(WorkbenchError, match="download=True"):
        metrics.inception_features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_features_and_logits_in_one_pass():
    model, calls = tiny_vit(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    features, logits = metrics.features_and_logits(model, IMAGES, batch_size=3)
    assert len(calls) == 3 and features.shape == (7, 24) and logits.shape == (7, 5)
    with torch.inference_mode():
        assert torch.allclose(model.head(features), logits, atol=1e-6)
        assert torch.allclose(
            model.forward_features(IMAGES.float() / 127.5 - 1)[:, 0], features, atol=1e-5
        )


WITHOUT = {"class_token": False, "global_pool": "avg"}


@torch.no_grad()
@pytest.mark.parametrize(
    "make, classes, patches",
    [
        (tiny_vit, 1, slice(1, None)),
        (lambda: tiny_vit(**WITHOUT), 0, slice(0, None)),
        (lambda: tiny_vit(**WITHOUT, reg_tokens=4), 0, slice(4, None)),
        # A token stands after its patches too.
        (lambda: models.create_model("titn_small").eval(), 1, slice(1, -1)),
    ],
)
def test_token_features_are_class_token_and_mean_of_patches(make, classes, patches):
    model = make()
    tokens = model.forward_features(IMAGES.float() / 127.5 - 1)
    expected = torch.cat([*tokens[:, :classes].unbind(1), tokens[:, patches].mean(1)], 1)
    assert torch.allclose(metrics.token_features(model, IMAGES, batch_size=2), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_features_of_a_backbone_are_its_output(pool):
    """Not what the last linear layer of its last block, or of its pooling, is given."""
    model = tiny_vit(global_pool=pool).eval()
    model.reset_classifier(0)
    images = IMAGES.float() / 127.5 - 1
    found, _ = metrics.features_and_logits(model, IMAGES)
    assert torch.allclose(found, model(images), atol=1e-5) and found.shape == (7, 24)
    loaded = models.Loaded(model, 28, 1, [0.5], [0.5], "a file", classifies=False)
    assert torch.equal(metrics.features_and_logits(loaded, IMAGES)[1], found)


class HeadFirst(nn.Module):
    """A head that is made before the layers it follows, and another that averages two."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(heads))
        self.body = nn.Linear(16, 16)

    def forward(self, images):
        features = self.body(images.flatten(1))
        outputs = [head(features) for head in self.heads]
        return outputs[0] if len(outputs) == 1 else sum(outputs) / len(outputs)


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2])
def test_the_head_is_what_gives_the_logits(heads):
    model, images = HeadFirst(heads).eval(), IMAGES[:, :, :4, :4]
    expected = model.body((images.float() / 127.5 - 1).flatten(1))
    assert torch.allclose(metrics.features_and_logits(model, images)[0], expected, atol=1e-6)


def backbone_of_tokens():
    model = tiny_vit(global_pool="")
    model.reset_classifier(0, "")
    return model


def linear_before_the_end():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 784), nn.Unflatten(1, (1, 28, 28)))
    return linear.extend([nn.Conv2d(1, 3, 28), nn.Flatten()]).eval()


CNN = nn.Sequential(nn.Flatten(), nn.Linear(784, 5))


@pytest.mark.parametrize(
    "features, make, count, words",
    [
        (metrics.classifier_features, backbone_of_tokens, 7, "linear"),
        (metrics.classifier_features, linear_before_the_end, 7, "linear"),
        (metrics.classifier_features, lambda: nn.Conv2d(1, 2, 3), 7, "linear"),
        (metrics.classifier_features, lambda: CNN, 0, "no image"),
        (metrics.token_features, lambda: CNN, 7, "(?s)no tokens.*classifier_features"),
        (metrics.token_features, lambda: models.create_model("cnn_small"), 7, "no tokens"),
    ],
)
def test_the_error_of_a_model_without_head_or_tokens_names_the_fix(features, make, count, words):
    with pytest.raises(WorkbenchError, match=words):
        features(make(), IMAGES[:count])
