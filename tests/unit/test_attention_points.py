"""Sampling points of deformable attention: weights times the values at them are what the module itself gives."""

import families
import pytest
import torch

from dfkd_lib import attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_detector


def between_tokens(values, x, y):
    """Values (rows, columns, d) at places in shares of the image, bilinear between the tokens' middles, 0 outside."""
    rows, columns = values.shape[:2]
    x, y = x * columns - 0.5, y * rows - 0.5
    total = torch.zeros(*x.shape, values.shape[-1])
    for right in (0, 1):
        for below in (0, 1):
            column, row = x.floor() + right, y.floor() + below
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
            found = values[row.clamp(0, rows - 1).long(), column.clamp(0, columns - 1).long()]
            total += torch.where(inside, share, 0.0)[..., None] * found
    return total


def rebuilt(module, memory, points, block):
    """The output of a deformable module over memory (1, T, D), from points and weights alone."""
    value = module.value_proj(memory) if hasattr(module, "value_proj") else memory
    heads, parts, start = module.n_heads, [], 0
    value = value.unflatten(-1, (heads, -1))[0]
    for level, (rows, columns) in enumerate(points.grids):
        scale = value[start : start + rows * columns].unflatten(0, (rows, columns))
        start += rows * columns
        of = points.levels == level
        x, y = points.locations[block, 0][:, :, of].unbind(-1)  # (heads, Q, points)
        read = torch.stack([between_tokens(scale[:, :, h], x[h], y[h]) for h in range(heads)])
        parts.append((points.weights[block, 0][:, :, of, None] * read).sum(2))
    found = torch.stack(parts).sum(0).transpose(0, 1).flatten(1)[None]
    return module.output_proj(found) if hasattr(module, "output_proj") else found


def ours(name):
    """A detector whose norms know its image: in an untrained one features vanish otherwise."""
    model, images = create_detector(name, 4).train(), torch.rand(1, 3, 64, 96)
    for module in model.modules():
        module.momentum = None  # of batch norms: all of what they see
    model(images)
    return model.eval(), images


OURS = ("deimv2_atto", "dfine_nano", "rtdetr_v2_r18", "rtdetr_r18")
OTHERS = ("Deformable DETR", "RT-DETR", "D-FINE", "RF-DETR")
MODELS = [(ours, name) for name in OURS] + [(families.detector, name) for name in OTHERS]


@pytest.mark.parametrize("make, name", MODELS)
@torch.no_grad()
def test_weights_times_sampled_values_are_the_modules_output(make, name):
    torch.manual_seed(0)
    model, images = make(name)
    images = images[:1]
    sites, given, outputs = attention.attention_sites(model, "cross"), [], []
    for site in sites:  # fresh ones look at all heads' points alike
        torch.nn.init.normal_(site.module.attention_weights.weight)
        torch.nn.init.normal_(site.module.sampling_offsets.weight)

        def keep(module, args, kwargs, output):
            given.append(kwargs["encoder_hidden_states"])
            outputs.append(output[0])

        site.module.register_forward_hook(keep, with_kwargs=True)
    plain = model(images)
    given.clear(), outputs.clear()
    points = attention.attention_points(model, images)
    assert len(points.locations) == len(sites) == len(outputs)
    assert torch.allclose(points.weights.sum(-1), torch.ones(()), atol=1e-5)
    assert points.locations.shape == (*points.weights.shape, 2)
    for block, (site, memory, output) in enumerate(zip(sites, given, outputs, strict=True)):
        found = rebuilt(site.module, memory, points, block)
        assert output.std() > 1e-5 and (found - output).abs().max() < 1e-4 * output.abs().max()
    last = attention.attention_points(model, images, [-1])
    assert torch.equal(last.weights[0], points.weights[-1])
    again = model(images)
    assert torch.equal(again.logits, plain.logits)


def test_dense_attention_has_no_points_and_sampling_no_map():
    detr = create_detector("detr_nano", 4).eval()
    deformable = create_detector("deimv2_atto", 4).eval()
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(WorkbenchError, match=r"(?s)samples no points.*attention_map") as caught:
        attention.attention_points(detr, images)
    assert attention.attention_map(detr, images, kind="cross").ndim == 4
    assert "cross" in caught.value.fix
    with pytest.raises(WorkbenchError, match=r"(?s)Deformable.*attention_points") as caught:
        attention.attention_map(deformable, images, kind="cross")
    assert attention.attention_points(deformable, images).locations.shape[0] == 3
    with pytest.raises(WorkbenchError, match="no such block"):
        attention.attention_points(deformable, images, [3])
    assert attention.attention_map(deformable, images, kind="decoder").ndim == 4
