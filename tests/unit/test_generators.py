"""What generators keep, how a walk between two noises goes, and what a moving average of one is."""

import pytest
import torch

from dfkd_lib.models import FieldGenerator, Generator
from dfkd_lib.synthesis import CGAN, crop_middle, kept_epochs, latent_walk


@pytest.mark.parametrize(
    "make", [lambda: Generator(3, 1, 8, 32), lambda: FieldGenerator(3, 1, 28, 8, 32)]
)
def test_a_generator_that_is_renewed_knows_how_to_draw_but_not_what(make):
    first, second = make(), make()
    second.load_state_dict(first.state_dict())
    before, chance = second.state_dict(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in before.items()}
    first.renew(5)
    second.renew(5)
    assert torch.equal(torch.get_rng_state(), chance)
    after = second.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    parts = ("embed.", "layers.0.")
    assert changed == {name for name in after if name.startswith(parts)} and len(after) > 10
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), after.values()))
    spread = [state["layers.0.weight"].std().item() for state in (before, after)]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)
    second.renew(6)
    assert not torch.equal(second.embed.weight, first.embed.weight)


@pytest.mark.parametrize(
    "make", [lambda: Generator(3, 1, 8, 32), lambda: FieldGenerator(3, 1, 28, 8, 32)]
)
def test_the_first_layer_is_the_papers_transposed_convolution(make):
    model = make()
    first = model.layers[0]
    weights, bias = first.weight, first.bias
    points = torch.randn(5, weights.shape[0], 1, 1)
    for stride in (1, 2):  # of one point the same
        known = torch.nn.functional.conv_transpose2d(points, weights, bias, stride)
        torch.testing.assert_close(first(points), known)
    with torch.autocast("cpu", torch.bfloat16):
        assert first(points).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "generator", [Generator(3, 1, latent=8, width=16), FieldGenerator(3, 1, 28, 8, 32)]
)
def test_a_walk_starts_and_ends_where_its_noises_are_and_moves_between(generator):
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        # An untrained generator's norms know nothing yet, and its images are flat.
        for _ in range(30):
            generator.train()(labels.repeat(8), *generator.noise(16))
    walk = latent_walk(generator, labels, 5, seed=3, side=28)
    assert walk.shape == (2, 5, 1, 28, 28) and walk.dtype == torch.uint8
    assert torch.equal(walk, latent_walk(generator, labels, 5, seed=3, side=28))
    source = torch.Generator().manual_seed(3)
    noise = generator.noise(2, source)
    with torch.no_grad():
        start = crop_middle(generator.eval()(labels, *noise), 28)
    assert (walk[:, 0].float() / 127.5 - 1 - start).abs().max() < 0.02
    assert not torch.equal(walk[:, 0], walk[:, 4])


def test_kept_epochs_are_few_even_and_hold_the_last():
    assert kept_epochs(4) == [1, 2, 3, 4]
    assert kept_epochs(1) == [1]
    many = kept_epochs(137)
    assert len(many) == 10 and many[-1] == 137 and many == sorted(set(many)) and many[0] > 0


def test_an_averaged_generator_learns_live_and_draws_by_the_mean():
    maker = CGAN(width=16, latent=8, ema=0.75)
    made = maker.new_generator(("a", "b"), (1, 32, 32))
    weight, labels, noise = made.live.layers[-2].weight, torch.tensor([0, 1]), torch.randn(2, 8)
    seen = []
    for value in (1.0, 2.0, 4.0):
        torch.nn.init.constant_(weight, value)
        assert torch.equal(made.train()(labels, noise), made.live(labels, noise))
        seen.append(made.mean.module.layers[-2].weight.mean().item())
    assert seen == pytest.approx([1.0, 1.25, 0.75 * 1.25 + 0.25 * 4])
    drawn = made.eval()(labels, noise)
    assert torch.equal(drawn, made.mean.module(labels, noise))
    assert not torch.equal(drawn, made.live(labels, noise))
    assert all(p.requires_grad for p in made.live.parameters())
    assert not any(p.requires_grad for p in made.mean.parameters())
