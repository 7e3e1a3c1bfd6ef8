"""Which prediction answers for which object: bipartite matching, the paper's own pairing, and student with teacher.

Objects come padded: labels int64 (B, M) with -1 where there is none (objects first), boxes (B, M, 4) cxcywh in [0, 1].
Pairing expands them to one target a query: labels (B, Q), "no object" being the last class, and boxes (B, Q, 4).
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dfkd_lib.losses import giou_apart

# Carion et al. 2020, with the class cost of Conditional DETR
COSTS = {"class": 2.0, "l1": 5.0, "giou": 2.0}


@torch.no_grad()
def matching_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """Cost (B, Q, M) of giving object m to query q: -probability of its class, L1, -GIoU of boxes, times COSTS."""
    index = labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    chance = logits.sigmoid().gather(2, index)
    return (
        -COSTS["class"] * chance
        + COSTS["l1"] * torch.cdist(boxes, target_boxes, p=1)
        - COSTS["giou"] * (1 - giou_apart(boxes[:, :, None], target_boxes[:, None]))
    )


def hungarian_targets(
    logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """DETR's pairing: each object goes to one query at the least total cost, the other queries get "no object".

    Returns:
        labels int64 (B, Q) in 0..K-1 and boxes (B, Q, 4), zero where there is no object. Objects beyond Q are left out.
    """
    cost = matching_cost(logits, boxes, labels, target_boxes)
    chosen = _assigned(torch.where(labels[:, None] >= 0, cost, torch.inf))
    return _expand(chosen, labels, target_boxes, logits.shape[-1] - 1)


def expanded_targets(
    logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """The paper's "expanded targets": a scene's objects are repeated, in their order, to fill all Q queries.

    Arguments and results as in `hungarian_targets`. Nothing teaches a query of a scene with objects to stay silent, so
    duplicates cost precision. The paper leaves the expansion open; this is the plain reading.
    """
    counts = (labels >= 0).sum(1, keepdim=True)
    chosen = torch.arange(logits.shape[1], device=labels.device)[None] % counts.clamp(min=1)
    return _expand(torch.where(counts > 0, chosen, -1), labels, target_boxes, logits.shape[-1] - 1)


def _expand(
    chosen: Tensor, labels: Tensor, target_boxes: Tensor, nothing: int
) -> tuple[Tensor, Tensor]:
    present, index = chosen >= 0, chosen.clamp(min=0)
    boxes = target_boxes.gather(1, index[..., None].expand(-1, -1, 4))
    boxes = torch.where(present[..., None], boxes, 0.0)
    return torch.where(present, labels.gather(1, index), nothing), boxes


@torch.no_grad()
def paired_queries(
    student_logits: Tensor, student_boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor
) -> Tensor:
    """Which of the teacher's queries each of the student's is paired with: int64 (B, Q_student), -1 for none.

    Queries of two DETRs have no common order, so they are paired one to one by what they predict (class probabilities and
    boxes): the assignment maximises objectness times closeness. A student with more queries keeps some to itself.
    """
    student, teacher = student_logits.sigmoid(), teacher_logits.sigmoid()
    apart = COSTS["l1"] * torch.cdist(student_boxes, teacher_boxes, p=1)
    distance = apart + torch.cdist(student, teacher, p=1)
    objectness = teacher[..., :-1].amax(-1) + 0.01
    return _assigned(objectness[:, None] * (distance - 4 * COSTS["l1"] - student.shape[-1]))


def _assigned(cost: Tensor) -> Tensor:
    """The column that each row of costs (B, rows, columns) is given at the least total cost: int64 (B, rows), -1 for none.

    Columns of infinite cost are left out; they come last. All of a batch is brought to the CPU at once.
    """
    table = cost.cpu().double().numpy()
    counts = (~np.isposinf(table[:, 0])).sum(1)
    # A diverged model predicts NaN: any pairing will do then, so that the loss reports it instead of the solver.
    table = np.nan_to_num(table, copy=False, nan=1e3)
    chosen = np.full(table.shape[:2], -1)
    for row, count in enumerate(counts):
        wanted = table[row, :, :count]
        if count == len(wanted):
            # Every column is given, so what is common to one decides nothing, but costs time.
            wanted -= wanted.min(0, keepdims=True)
        rows, columns = linear_sum_assignment(wanted)
        chosen[row, rows] = columns
    return torch.from_numpy(chosen).to(cost.device)


PAIRINGS = {"hungarian": hungarian_targets, "expanded": expanded_targets}
