"""Reasons not to take measures as they stand, each a sentence with its numbers."""

from collections.abc import Iterable

from torch import Tensor

from dfkd_lib.metrics.coverage import QUANTILE, Nearness

HARDLY = 0.1  # of a class's share among the real images: below it, the class counts as lost
EXPECTED = (
    10  # images that real shares would give a class; with fewer, that none came may be chance
)
REPEATED, COPIED = 0.10, 0.05  # shares of made images, where real ones would have 0.01
Sizes = Iterable[tuple[str, int, int]]  # (name, made images, real images)


def singular_doubts(sizes: Sizes, dimensions: int, k: int) -> list[str]:
    """What to say of fewer images than dimensions, overall first, then the classes in one sentence.

    The line is at N = D: below it a covariance is singular by its size alone, whatever the images are, and the distance
    counts directions that no image could have filled. The bias of the order of D / N above it is not warned of.
    """
    found = [(name, made, real) for name, made, real in sizes if k < min(made, real) <= dimensions]
    doubts = [
        f"There are {made:,} made and {real:,} real images for {dimensions:,} feature dimensions: a covariance is "
        "singular, and the Fréchet distance is biased upwards."
        for name, made, real in found
        if name == "all"
    ]
    classes = [(name, min(made, real)) for name, made, real in found if name != "all"]
    if classes:
        few, many = min(n for _, n in classes), max(n for _, n in classes)
        count = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        doubts.append(
            f"Of {_classes([name for name, _ in classes])} the smaller side has only {count} images for "
            f"{dimensions:,} feature dimensions: by class, the Fréchet distance is biased upwards."
        )
    return doubts


def missing_doubts(sizes: Sizes, k: int) -> list[str]:
    """What to say of the classes that have too few images to be measured, in one sentence."""
    found = [
        f"class {name} ({made:,} made, {real:,} real)"
        for name, made, real in sizes
        if min(made, real) <= k
    ]
    return (
        [f"Not measured, for want of more than k = {k} images on both sides: {', '.join(found)}."]
        if found
        else []
    )


def collapse_doubts(
    real_labels: Tensor,
    logits: Tensor | None,
    num_classes: int,
    duplicates: Nearness,
    copies: Nearness,
) -> list[str]:
    """What to say of classes that the classifier hardly finds, of images made again and again, and of copies.

    Args:
        real_labels: int64 (N,).
        logits: of the made images (M, K), or None.
        duplicates: of the made images.
        copies: likewise.
    """
    doubts = []
    if logits is not None:
        found = logits.argmax(1).bincount(minlength=num_classes)
        expected = (
            real_labels.bincount(minlength=num_classes).double() / len(real_labels) * len(logits)
        )
        lost = ((expected >= EXPECTED) & (found < HARDLY * expected)).nonzero().flatten().tolist()
        if lost:
            counts = ", ".join(f"{found[c]:,}" for c in lost)
            doubts.append(
                f"The classifier finds {_classes(lost)} in only {counts} of {len(logits):,} made images, where "
                f"the real shares would give {', '.join(f'{expected[c]:,.0f}' for c in lost)}: the maker has "
                "lost these modes."
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


def _classes(names: list) -> str:
    return ("class " if len(names) == 1 else "classes ") + ", ".join(map(str, names))
