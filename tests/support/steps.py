"""The library's steps bound to their networks, as the training loop calls them, and a student in one call."""

from dfkd_lib import distill, synthesis
from dfkd_lib.distill import KDWeights, StudentConfig
from dfkd_lib.training import Augmentation


def distill_step(student, teacher, weights, aligner=None, **blocks):
    """`kd_step` of these weights and blocks as (batch, progress) → losses."""
    step = distill.kd_step(weights, **blocks)
    return lambda batch, progress: step(student, batch, teacher, progress, aligner)


def gan_step(
    generator, discriminator, teacher, probes, lam, side, steps=1, epochs=1, share=1.0, every=8
):
    """`synthesis.gan_step` as (batch, progress) → updates; the attention loss of λ = 0 is measured every eighth step."""
    nets = synthesis.Networks(generator, discriminator, teacher, probes, side, share)

    def step(batch, progress):
        nets.watching = round(progress * epochs * steps) % steps % every == 0
        yield from synthesis.gan_step(nets, *batch[:2], lam)

    return step


def train_student(
    store,
    stage,
    model,
    teacher,
    images,
    test_set,
    config,
    weights=KDWeights(),
    augmentation=Augmentation(),
    **more,
):
    """`distill.train` by the library's step, of a model's name and a `TrainConfig`."""
    kind, mix = augmentation.kind, augmentation.mix
    student = StudentConfig(**config, model=model, augmentation=kind, mix=mix)
    return distill.train(store, student, weights, images, test_set, teacher, stage=stage, **more)
