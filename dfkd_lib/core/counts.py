"""Real images counted over ledgers: of one artifact, and of all that it was made from."""

from collections.abc import Iterable, Sequence

from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.core.ledger import EVALUATION, NOT_RECORDED

OTHERS = " and others that nobody recorded"
Counts = dict[tuple[str, str], int]  # (split, purpose) -> images


def most_images(rows: Iterable[dict]) -> Counts:
    """{(split, purpose): images}: the most that any one row read, as rows of one split mostly read the same images."""
    most: Counts = {}
    for row in rows:
        place = (row["split"], row["purpose"])
        most[place] = max(most.get(place, 0), row["images"])
    return {place: n for place, n in sorted(most.items()) if n or place[0] == NOT_RECORDED}


def learned_from(counts: Counts) -> int:
    """Real images read for anything but evaluation, each split counted once."""
    splits: dict[str, int] = {}
    for (split, purpose), count in counts.items():
        if purpose != EVALUATION:
            splits[split] = max(splits.get(split, 0), count)
    return sum(splits.values())


def images_behind(store: Store, made: Artifact | Sequence[Artifact], without: str = "") -> Counts:
    """What artifacts and all that they were made from read, teachers and priors included.

    Args:
        without: the key of an artifact that is left out with all behind it.

    Returns:
        {(split, purpose): images}, the most of any one stage: the least that lies behind them.
    """
    waiting = [made] if isinstance(made, Artifact) else list(made)
    rows, known = [], {without}
    while waiting:
        one = waiting.pop()
        if one.key not in known:
            known.add(one.key)
            rows += one.ledger
            waiting += [found for key in one.parents if (found := store.find(key))]
    return most_images(rows)


def purposes_text(counts: Counts) -> str:
    """Real images by what was learned from them, as a cell of a table: "60,000 (training)", with a note on what nobody
    recorded; of each purpose the split of which most was read, evaluation left out."""
    most: dict[str, int] = {}
    for (split, purpose), count in counts.items():
        if purpose != EVALUATION and split != NOT_RECORDED:
            most[purpose] = max(most.get(purpose, 0), count)
    unknown = any(split == NOT_RECORDED for split, _ in counts)
    return ("; ".join(f"{n:,} ({why})" for why, n in most.items()) or "0") + OTHERS * unknown


def total_text(counts: Counts) -> str:
    """How many real images were learned from, as a cell of a table: "60,000", with a note on what nobody recorded."""
    unknown = any(split == NOT_RECORDED for split, _ in counts)
    return f"{learned_from(counts):,}" + OTHERS * unknown
