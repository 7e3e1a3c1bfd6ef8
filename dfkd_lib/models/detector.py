"""A detection transformer of transformers behind one small interface: images in, class logits and boxes out."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd_lib.datasets import FILL

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NARROW = 32  # pixels: a frame narrower than that may lie between the tokens


class Detections(NamedTuple):
    """The predictions of a detector."""

    logits: Tensor  # (B, Q, classes + 1), the last column "no object"
    boxes: Tensor  # (B, Q, 4) cxcywh in [0, 1]
    # Both of each earlier decoder layer, if asked for.
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()
    # Its own training loss, of a detector that brings one and was given objects.
    own: Tensor | None = None


class Detector(nn.Module):
    """A DETR or Conditional DETR; `num_labels` is without "no object".

    `classes` are their names, in the order of the labels, once it has learned them; else None. `kept` are those whose
    rows it started with, None where the weights it started from named no classes.
    """

    def __init__(self, network: nn.Module, num_labels: int):
        super().__init__()
        self.network, self.num_labels = network, num_labels
        self.classes: tuple[str, ...] | None = None
        self.kept: tuple[str, ...] | None = None
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def num_queries(self) -> int:
        return self.network.config.num_queries

    @property
    def projection(self) -> nn.Module:
        """The module that gives the backbone's deepest features, projected for the encoder: (B, D, h, w)."""
        return self.network.model.input_projection

    def forward(self, images: Tensor, earlier: bool = False) -> Detections:
        """Detect in images, float (B, 3, H, W) in [0, 1]; `earlier` adds the predictions of earlier decoder layers.

        Where frames are filled up with the mean colour, the rest is masked, and the network's boxes, which are shares of
        the frame (its position embeddings end where that ends), become shares of the image.
        """
        pixels = self._normalised(images)
        mask, frame = pixel_mask(images)
        output = self.network.model(pixels, pixel_mask=mask, output_hidden_states=earlier)
        reference = getattr(output, "reference_points", None)
        if not earlier:
            return Detections(*self.heads(output.last_hidden_state, reference, frame))
        states = map(self.network.model.decoder.layernorm, output.decoder_hidden_states[1:-1])
        every = torch.stack([*states, output.last_hidden_state])
        *before, last = zip(
            *(part.unbind() for part in self.heads(every, reference, frame)), strict=True
        )
        return Detections(*last, tuple(before))

    def features(self, images: Tensor) -> Tensor:
        """What `projection` gives of images, float (B, 3, H, W) in [0, 1], without the transformer: (B, D, h, w)."""
        return self.projection(self.network.model.backbone.model(self._normalised(images))[-1])

    def _normalised(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def heads(
        self, state: Tensor, reference: Tensor | None, frame: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (…, Q, classes + 1) and boxes (…, Q, 4) of decoder states (…, Q, D).

        Args:
            reference: points (Q, B, 2) in [0, 1] that Conditional DETR's centres are relative to; else None.
            frame: (B, 4) corner and size of each frame within its image, as shares.
        """
        logits = self.network.class_labels_classifier(state).float()
        boxes = self.network.bbox_predictor(state).float()
        # Conditional DETR predicts centres relative to each query's reference point.
        if reference is not None:
            centre = torch.logit(reference.transpose(0, 1).float(), eps=1e-5)
            boxes = torch.cat([boxes[..., :2] + centre, boxes[..., 2:]], dim=-1)
        corner, size = frame[:, None].split(2, -1)
        centre, extent = (boxes.sigmoid() * size.repeat(1, 1, 2)).split(2, -1)
        return logits, torch.cat([centre + corner, extent], -1)


def pixel_mask(images: Tensor) -> tuple[Tensor, Tensor]:
    """Where the frames are in images (B, 3, H, W) in [0, 1] that may be filled up with the mean colour.

    Rows and columns at an edge that are wholly of that colour are none of the frame; of an image that would be left
    narrower than a token, all is.

    Returns:
        int64 (B, H, W), 1 within the frame, as transformers' processors give it; and (B, 4): left, top, width, height of
        the frame as shares of the image.
    """
    fill = torch.tensor(FILL, dtype=torch.float32, device=images.device).view(3, 1, 1) / 255
    apart = (images.detach().float() - fill).abs().amax(1)
    sides = []
    for axis in (2, 1):  # rows, then columns
        line = (apart.amax(axis) > 1e-3).long()
        before = line.cumsum(1)
        inside = ((before > 0) & (before[:, -1:] - before + line > 0)).long()
        enough = (inside.sum(1, keepdim=True) >= min(NARROW, line.shape[1])).long()
        sides.append(1 - enough + enough * inside)
    rows, columns = sides
    shares = [
        part / line.shape[1]
        for line in (columns, rows)
        for part in ((line.cumsum(1) == 0).sum(1), line.sum(1))
    ]
    left, width, top, height = (part.float() for part in shares)
    return rows[:, :, None] * columns[:, None], torch.stack([left, top, width, height], -1)
