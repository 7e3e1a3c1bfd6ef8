"""Reasons not to take measures as they stand, each a sentence with its numbers."""

from collections.abc import Iterable

from torch import Tensor

from dfkd_lib.metrics.coverage import QUANTILE, Nearness

HARDLY = 0.1  # of a class's share among the real images: below it, the class counts as lost
# Images that real shares would give a class; with fewer, that none came may be chance.
EXPECTED = 10
REPEATED, COPIED = 0.10, 0.05  # shares of made images, where real ones would have 0.01
Sizes = Iterable[tuple[str, int, int]]  # (name, made images, real images)


def size_doubts(sizes: Sizes, dimensions: int, k: int) -> list[str]:
    """What to say of too few images to be measured, and of fewer images than dimensions.

    The line is at N = D: below it a covariance is singular by its size alone, whatever the images are, and the distance
    counts directions that no image could have filled. The bias of the order of D / N above it is not warned of.
    """
    missing, singular = [], []
    for name, made, real in sizes:
        shown = f"{name if name == 'all' else f'class {name}'} ({made:,} made, {real:,} real)"
        if min(made, real) <= k:
            missing.append(shown)
        elif min(made, real) <= dimensions:
            singular.append(shown)
    doubts = []
    if singular:
        doubts.append(
            f"Fewer images than the {dimensions:,} feature dimensions: {', '.join(singular)}. A covariance is "
            "singular, and these Fréchet distances are biased upwards."
        )
    if missing:
        doubts.append(
            f"Not measured, for want of more than k = {k} images on both sides: {', '.join(missing)}."
        )
    return doubts


def collapse_doubts(
    real_labels: Tensor,
    logits: Tensor | None,
    num_classes: int,
    duplicates: Nearness,
    copies: Nearness,
) -> list[str]:
    """What to say of classes that the classifier hardly finds, of images made again and again, and of copies; real labels
    int64 (N,), logits of made images (M, K) or None."""
    doubts = []
    if logits is not None:
        found = logits.argmax(1).bincount(minlength=num_classes)
        shares = real_labels.bincount(minlength=num_classes).double() / len(real_labels)
        expected = shares * len(logits)
        lost = ((expected >= EXPECTED) & (found < HARDLY * expected)).nonzero().flatten().tolist()
        if lost:
            listed = ", ".join(f"class {c} ({found[c]:,}, not {expected[c]:,.0f})" for c in lost)
            doubts.append(
                f"Of {len(logits):,} made images the classifier takes far fewer than the real shares would give for "
                f"{listed}: the maker has lost these modes."
            )
    if duplicates.share > REPEATED and duplicates.share * duplicates.images >= 5:
        doubts.append(
            f"{duplicates.share:.1%} of {duplicates.images:,} made images have another made image nearer than "
            f"{duplicates.threshold:.4g}, which {QUANTILE:.0%} of real images have: the maker repeats itself."
        )
    if copies.share > COPIED and copies.share * copies.images >= 5:
        doubts.append(
            f"{copies.share:.1%} of {copies.images:,} made images lie nearer to a real one than "
            f"{copies.threshold:.4g}, which {QUANTILE:.0%} of other real images do (median distance "
            f"{copies.ratio:.2f} of theirs): the maker may have memorised images; look at the neighbours."
        )
    return doubts
