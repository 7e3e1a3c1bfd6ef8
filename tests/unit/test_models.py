"""Models by name, with the papers' parameter counts."""

import pytest
import torch
import torch.nn.functional as F

from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import (
    Discriminator,
    Generator,
    count_parameters,
    create_model,
    detector_names,
    display_name,
    has_batch_norm,
    model_names,
)


@pytest.mark.parametrize(
    "name, count",
    [
        ("vit_mnist_teacher", 9_498_122),
        ("deit_xtiny_patch4_28", 2_389_514),
        ("deit_base_patch4_32", 21_342_346),
        ("vit_cifar_student", 12_025_450),
        ("vit_cifar_student_128", 2_395_530),
        # DearKD's student and what it is measured against are of one size.
        ("dearkd_tiny_32", 5_700_116),
        ("dearkd_baseline_32", 5_701_420),
        # 21.28, 11.17, 2.24, 0.69 and 0.18 million of the field's pairs of CNNs.
        ("resnet34_32", 21_282_122),
        ("resnet18_32", 11_173_962),
        ("wrn_40_2", 2_243_546),
        ("wrn_16_2", 691_674),
        ("wrn_16_1", 175_066),
        ("resnet11", 2_494_890),
        ("resnet11_wide", 3_620_938),
        # At most 3M, by the sum of their layers.
        ("vit_cifar_conv", 2_863_738),
        ("vit_cifar_conv_mini", 1_081_130),
        # 1,248,424 for ImageNet, of which the last layer has 512 weights and a bias a class.
        ("squeezenet_32", 1_248_424 - 990 * 513),
    ],
)
def test_parameter_counts_of_the_paper(name, count):
    assert count_parameters(create_model(name)) == count


@pytest.mark.parametrize("name, last", [("resnet18_32", 512), ("wrn_16_2", 128)])
def test_the_peers_networks_halve_32_pixels_twice_or_thrice(name, last):
    """What the pairs of the field share: a first convolution that keeps the side."""
    model = create_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features, (first,) = model.forward_intermediates(images, indices=[0])
    assert first.shape[2:] == (32, 32) and features.shape[1] == last
    torch.testing.assert_close(model.forward_head(features), model(images))
    assert features.shape[-1] == (4 if name == "resnet18_32" else 8)


def test_batch_norms_are_known_by_name():
    assert all(map(has_batch_norm, ("wrn_16_1", "resnet18_32", "vgg16_bn", "cnn_small")))
    assert not any(
        map(has_batch_norm, ("vit_mnist_small", "vit_cifar_conv", "vgg16_32", "unknown"))
    )


def test_a_convolutional_embedding_has_a_patchs_tokens_in_their_places():
    """A change of one patch changes the tokens round it; probes and grids are those of any other ViT."""
    model = create_model("vit_cifar_conv_mini").eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., 8:12, 20:24] += 1.0
    tokens = model.patch_embed(images)
    assert tokens.shape == (1, 64, 128) and tuple(model.patch_embed.grid_size) == (8, 8)
    moved = (model.patch_embed(changed) - tokens).norm(dim=2).view(8, 8)
    rows, columns = moved.nonzero().unbind(1)
    assert (moved[2, 5] > 0) and (rows - 2).abs().max() <= 3 and (columns - 5).abs().max() <= 3
    probe = outputs_and_probe(model, images)[1]
    assert probe.shape == (1, 64)


def test_a_wide_block_is_the_published_one():
    """BN, ReLU, convolution, twice; where channels change, the way round is a convolution of the first ReLU."""
    block = create_model("wrn_16_2").stages[1][0].eval()
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = F.relu(block.norm1(x))
    inner = F.conv2d(seen, block.conv1.weight, padding=1)
    inner = F.conv2d(F.relu(block.norm2(inner)), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), inner + F.conv2d(seen, block.round.weight))


@pytest.mark.parametrize("name", [n for n in model_names() if "small" in n or "smoke" in n])
def test_logits_of_any_classes(name):
    model = create_model(name, num_classes=7, img_size=28, in_chans=3).eval()
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("vit_mnist_teachr", {}, "did you mean 'vit_mnist_teacher"),
        ("vit_mnist_small", {"patchsize": 4}, "no such setting"),
        ("vit_mnist_small", {"heads": 3}, "cannot be built"),
        ("vit_mnist_small", {"img_size": 30}, "cannot be built"),
        ("vit_cifar_conv", {"patch_size": 3, "img_size": 33}, "power of 2"),
        ("wrn_16_1", {"depth": 17}, "6 n \\+ 4"),
        ("resnet18_32", {"img_size": 4}, "at least 8"),
        ("vgg16_bn", {"img_size": 28}, "at least 32"),
        ("cnn_small", {"img_size": 2}, "at least 4"),
        ("titn", {"img_size": 30}, "cannot be built"),
        ("dearkd_small", {"heads": 8}, "no square number"),
        ("dearkd_small", {"early_depth": 9}, "not within 4"),
    ],
)
def test_bad_requests(name, overrides, words):
    with pytest.raises(WorkbenchError, match=words):
        create_model(name, **overrides)


def test_gan_layers_of_the_paper():
    generator, discriminator = Generator(10, 3), Discriminator(10, 3)
    convolutions = [m for m in generator.layers if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [c.out_channels for c in convolutions] == [512, 256, 128, 3]
    assert convolutions[0].kernel_size == (4, 4) and convolutions[0].stride == (2, 2)
    assert generator.embed.embedding_dim == 5 and discriminator.embed.embedding_dim == 1024
    convolutions = [m for m in discriminator.layers if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 1]
    labels = torch.tensor([0, 9])
    images = generator(labels, torch.randn(2, 100))
    assert images.shape == (2, 3, 32, 32) and images.abs().max() <= 1
    assert discriminator(images, labels).shape == (2,)
    # The class reaches image and verdict.
    generator, judge, (zero, one) = generator.eval(), discriminator.eval(), labels[:, None]
    a, b = (generator(label, torch.ones(1, 100)) for label in (zero, one))
    assert not torch.allclose(a, b) and not torch.allclose(judge(a, zero), judge(a, one))


@pytest.mark.parametrize(
    "name, shown",
    [
        ("vit_mnist_mini_patch7", "ViT MNIST mini, patch 7"),
        ("deit_base_patch4_32", "DeiT base, patch 4, 32 px"),
        ("vit_cifar_student_128", "ViT CIFAR student-128"),  # of that width
        ("wrn_40_2", "WRN-40-2"),
        ("wide_resnet50_32", "Wide ResNet-50, 32 px"),
        ("conditional_detr_resnet18_2x2", "Conditional DETR ResNet-18 2 × 2"),
        ("rtdetr_v2_r18", "RT-DETR v2 r18"),
        ("deit_tiny_patch16_224.fb_in1k", "DeiT tiny, patch 16, 224 px (fb_in1k)"),
    ],
)
def test_readers_are_told_a_models_name_and_not_its_id(name, shown):
    assert display_name(name) == shown


def test_no_two_models_are_told_by_one_name():
    names = [*model_names(), *detector_names()]
    assert len({display_name(name) for name in names}) == len(names)
