"""Query-aligned distillation: teacher and student answer the same queries about the same scenes, so nothing is matched.

After KD-DETR (Wang et al., CVPR 2024: shared sampling queries, the teacher's own and general ones) and D³ETR (Chen et al.
2022: the teacher's queries in the student's decoder, compared layer by layer). Ours is the learned linear map between
networks of different widths.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfkd_lib.attention import capture_attention, patch_grid
from dfkd_lib.core import WorkbenchError
from dfkd_lib.losses import (
    attention_distillation_loss,
    objectness,
    query_box_loss,
    query_feature_loss,
    query_logit_loss,
)
from dfkd_lib.models import REALTIME, Detector, hooked, pixel_mask


class Answers(NamedTuple):
    """What a detector gives at each of its L decoder layers for queries that another one was asked too."""

    logits: Tensor  # (L, B, Q, K), the last of K classes "no object"
    boxes: Tensor  # (L, B, Q, 4), cxcywh in [0, 1]
    features: Tensor  # (L, B, Q, D)
    maps: Tensor  # cross-attention (L, B, Q, h, w), mean over heads


@contextmanager
def decoder_inputs(detector: Detector) -> Iterator[dict[str, Any]]:
    """What the decoder of a DETR is given while the detector runs, by name: the encoder's tokens and their positions."""
    given: dict[str, Any] = {}
    with detector.network.model.decoder.register_forward_pre_hook(
        lambda module, args, named: given.update(named), with_kwargs=True
    ):
        yield given


def decode_queries(
    detector: Detector,
    given: dict[str, Any],
    images: Tensor,
    embeddings: Tensor,
    references: Tensor | None = None,
) -> Answers:
    """A DETR's answers to groups of queries of anyone's; queries attend to those of their group alone.

    Args:
        given: what `decoder_inputs` kept of these images.
        images: float (B, 3, H, W) in [0, 1].
        embeddings: positions of the queries, (G, Q, D).
        references: logits of their reference points (G, Q, 2), of Conditional DETR, whose own head gives them by default.

    Returns:
        `Answers` of a batch of G·B, group by group.
    """
    decoder, scenes, groups = detector.network.model.decoder, len(images), len(embeddings)
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    given = {name: value.repeat(groups, *[1] * (value.ndim - 1)) for name, value in tensors.items()}
    positions = embeddings.repeat_interleave(scenes, 0)
    given |= {
        "object_queries_position_embeddings": positions,
        "inputs_embeds": torch.zeros_like(positions),
    }
    with (
        _referred(decoder, references, scenes),
        capture_attention(detector.network, None, None, kind="cross") as seen,
    ):
        output = decoder(**given, output_hidden_states=True)
    states = [*map(decoder.layernorm, output.hidden_states[1:-1]), output.last_hidden_state]
    features, frame = torch.stack(states), pixel_mask(images)[1].repeat(groups, 1)
    heads = detector.heads(features, getattr(output, "reference_points", None), frame)
    maps = torch.stack([seen[layer].mean(1) for layer in range(len(states))])
    grid = patch_grid(detector.network, maps.shape[-1], *images.shape[-2:])
    return Answers(*heads, features, maps.unflatten(-1, grid))


def _referred(decoder: nn.Module, references: Tensor | None, scenes: int) -> AbstractContextManager:
    """Let these be the reference points of a Conditional DETR's queries in place of its own."""
    if references is None or not hasattr(decoder, "ref_point_head"):
        return nullcontext()
    points = references.repeat_interleave(scenes, 0)
    return hooked([decoder.ref_point_head], lambda module, args, own: points.to(own))


class QueryAligner(nn.Module):
    """Puts the teacher's object queries, and random ones of their kind, to the teacher and to a student.

    Its parameters, the linear maps of queries to the student's width and of features to the teacher's, are trained beside
    the student and not kept; at equal widths they begin as the identity.

    Args:
        student, teacher: DETRs or Conditional DETRs; the teacher is frozen.
        general: groups of as many random queries as the teacher has, drawn at each step from the normal distribution of
            each component of the teacher's. They stand where the teacher's reference head, if it has one, puts them.
    """

    def __init__(self, student: Detector, teacher: Detector, general: int = 1):
        super().__init__()
        own, theirs = (one.network.config.d_model for one in (student, teacher))
        self._teacher, self.general = (teacher,), general  # in a tuple it is none of the parameters
        self.queries = nn.Linear(theirs, own, bias=False)
        self.features = nn.Linear(own, theirs, bias=False)
        for layer in (self.queries, self.features):
            nn.init.eye_(layer.weight) if own == theirs else nn.init.orthogonal_(layer.weight)

    def forward(
        self, student: Detector, given: dict[str, Any], images: Tensor
    ) -> tuple[Answers, Answers]:
        """The student's answers, features in the teacher's width, and the teacher's of its layer that is as deep.

        Args:
            given: what `decoder_inputs` kept of the student at these images, float (B, 3, H, W) in [0, 1].
        """
        (teacher,) = self._teacher
        with torch.no_grad():
            with decoder_inputs(teacher) as known:
                teacher(images)
            queries, references = self.sampled()
            target = decode_queries(teacher, known, images, queries, references)
        found = decode_queries(student, given, images, self.queries(queries), references)
        layers, count = len(found.logits), len(target.logits)
        rows = [-(-(layer + 1) * count // layers) - 1 for layer in range(layers)]
        found = found._replace(features=self.features(found.features))
        return found, Answers(*(part[rows] for part in target))

    def sampled(self) -> tuple[Tensor, Tensor | None]:
        """The teacher's queries (1 + general, Q, D), its own first, and logits of their reference points or None."""
        model = self._teacher[0].network.model
        own = model.query_position_embeddings.weight
        noise = torch.randn(self.general, *own.shape, device=own.device)
        spread = own.std(0, correction=0)
        queries = torch.cat([own[None], own.mean(0) + spread * noise])
        head = getattr(model.decoder, "ref_point_head", None)
        return queries, None if head is None else head(queries)


def inputs_if_shared(aligner: QueryAligner | None, student: Detector):
    """`decoder_inputs` of the student where queries are shared; else a context that gives None."""
    return nullcontext() if aligner is None else decoder_inputs(student)


def shared_losses(
    found: Answers, target: Answers, weights: dict[str, float], temperature: float
) -> dict[str, Tensor]:
    """The losses with a weight above 0 of a student's answers to the teacher's queries, (L,) each, by name.

    Every query counts by the teacher's objectness at that layer.
    """
    sure = objectness(target.logits)
    losses = {
        "query_logits": lambda: query_logit_loss(found.logits, target.logits, sure, temperature),
        "query_boxes": lambda: query_box_loss(found.boxes, target.boxes, sure),
        "query_features": lambda: query_feature_loss(found.features, target.features, sure),
        "query_attention": lambda: torch.stack(
            [*map(attention_distillation_loss, found.maps, target.maps, sure)]
        ),
    }
    return {name: compute() for name, compute in losses.items() if weights[name]}


def check_shareable(*models: str) -> None:
    """WorkbenchError on detectors to which another one's queries cannot be put."""
    other = [name for name in models if name in REALTIME]
    if other:
        raise WorkbenchError(
            f"{', '.join(other)} cannot be asked another detector's queries",
            expected="DETRs or Conditional DETRs as teacher and as student: D-FINE, DEIMv2, RT-DETR and RF-DETR "
            "choose their queries among the tokens of each image",
            got=" and ".join(models),
            where="query-aligned distillation",
            fix="name students without aligned (students=train,plain) and leave losses.query_… at 0: matched "
            "distillation works for these; or choose a DETR",
        )
