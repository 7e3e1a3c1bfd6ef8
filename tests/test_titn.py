"""TITN and its comparison: the paper's sizes, two heads, CutMix and the losses of eq. 9 and 10."""

import pytest
import torch

from dfkd_lib.errors import WorkbenchError
from dfkd_lib.models import count_parameters, create_model

# Table 1, 10 classes; a distillation token, its place and its head add 192 + 192 + 1930 = 2314 to TNT and ViT.
PAPER_COUNTS = {"tnt": 5_850_778, "titn": 5_850_778 + 2314, "titn_large_patch": 5_848_474 + 2314,
                "vit_tiny_32": 5_381_194, "deit_tiny_32": 5_381_194 + 2314, "vgg16_bn": 134_309_962}


@pytest.mark.parametrize("name", PAPER_COUNTS)
def test_paper_parameter_counts(name):
    with torch.device("meta"):
        assert count_parameters(create_model(name)) == PAPER_COUNTS[name]


def test_small_cnn_is_small():
    assert count_parameters(create_model("cnn_small")) <= 300_000


@pytest.mark.parametrize("name", ["titn_small", "titn_small_large_patch", "deit_small_28"])
def test_two_heads_in_training_and_their_mean_in_evaluation(name):
    torch.manual_seed(0)
    model, images = create_model(name), torch.randn(2, 1, 28, 28)
    class_logits, dist_logits = model.train()(images)
    assert class_logits.shape == dist_logits.shape == (2, 10) and not torch.equal(class_logits, dist_logits)
    torch.testing.assert_close(model.eval()(images), (class_logits + dist_logits) / 2)


def test_titn_gives_both_heads_when_asked():
    model = create_model("titn_small").eval()
    assert len(model(torch.randn(2, 1, 28, 28), both=True)) == 2


def test_inner_attention_stays_within_its_patch():
    """With the outer blocks' mixing switched off, a pixel reaches its own patch token only."""
    torch.manual_seed(0)
    model = create_model("titn_small").eval()
    for block in model.blocks:
        for last in (block.attn_out.proj, block.mlp.fc2):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    images = torch.zeros(1, 1, 28, 28)
    changed = images.clone()
    changed[0, 0, 8, 15] = 1.0  # row 1, column 2 of the 4x4 patches
    moved = (model.forward_features(changed) - model.forward_features(images)).abs().sum(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [1 + 1 * 4 + 2]  # token 0 is the class token


def test_images_that_do_not_fit_are_refused():
    for name, bad in (("titn", {"img_size": 30}), ("vit_tiny_32", {"img_size": 30}), ("vgg16_bn", {"img_size": 28}),
                      ("cnn_small", {"img_size": 2})):
        with pytest.raises(WorkbenchError):
            create_model(name, **bad)
