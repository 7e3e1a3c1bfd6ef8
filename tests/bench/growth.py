"""How cost grows: time and peak memory at 1, 4 and 16 times the work, each point in a process of its own, and the slopes.

A slope is that of a straight line through the logarithms: 1 where cost grows as the work does, 0 where it does not grow.
"""

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from bench.memory import MODEL, last_line_apart, peak_growth
from bench.output import number, provenance
from bench.picture import growth_lines
from dfkd_lib import ablation, attention, datasets, metrics, training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import resolve, save_json
from dfkd_lib.distill import KDWeights, distill_step
from dfkd_lib.distill.targets import Targets
from dfkd_lib.models import create_model
from dfkd_lib.training import Batch

TIMES = (1, 4, 16)
STUDENT, DIMENSIONS = "vit_mnist_mini_patch7", 128


def images_probes(count: int) -> Callable:
    """Class probes of so many MNIST images."""
    data, model = datasets.load_images("mnist", "train"), create_model(MODEL).eval()
    images, labels = data.images[:count], data.labels[:count]
    return lambda: attention.class_probe_statistics(model, attention.in_batches(images, labels), 10)


def images_statistics(count: int) -> Callable:
    """Mean and covariance of so many features, and the Fréchet distance to as many others."""
    a, b = (
        torch.randn(count, 4 * DIMENSIONS, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    return lambda: metrics.frechet_distance(*metrics.statistics(a), *metrics.statistics(b))


def images_epoch(count: int) -> Callable:
    """An epoch of a student on so many uint8 images with kept logits, through the real loop."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=draw)
    logits, student = torch.randn(count, 10, generator=draw), create_model(STUDENT)
    batches = training.TensorBatches(
        (images, torch.arange(count) % 10, torch.arange(count)),
        64,
        lambda batch, _: Batch(datasets.to_float(batch[0]), *batch[1:]),
    )
    step = distill_step(
        student, lambda batch: Targets(logits[batch.rows], None), KDWeights(patch=0.0)
    )
    return lambda: training.fit(
        {"student": student}, step, batches, training.TrainConfig(epochs=1, batch_size=64, lr=1e-3)
    )


def tokens_probe(patches: int) -> Callable:
    """The probe of DeiT-Tiny's last block of one image with so many patches (a square number)."""
    import timm

    side = 16 * math.isqrt(patches)
    model, images = (
        timm.create_model("deit_tiny_patch16_224", img_size=side).eval(),
        torch.randn(1, 3, side, side),
    )

    def probes() -> None:
        with torch.inference_mode():
            for _ in range(4):
                attention.attention_probe(model, images)

    return probes


def classes_probes(count: int) -> Callable:
    """Class probes of the same 2,000 images in so many classes."""
    data, model = datasets.load_images("mnist", "train"), create_model(MODEL).eval()
    labels = torch.arange(2000) % count
    return lambda: attention.class_probe_statistics(
        model, attention.in_batches(data.images[:2000], labels), count
    )


def classes_distances(count: int) -> Callable:
    """A Fréchet distance for each of so many classes, 64 images a class and side."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, 64, DIMENSIONS, generator=draw) for _ in range(2))
    return lambda: [
        metrics.frechet_distance_from_features(*pair) for pair in zip(a, b, strict=True)
    ]


def seeds_table(count: int) -> Callable:
    """The table of an ablation of 6 rows and so many seeds: means, intervals, paired tests of all pairs."""
    draw = torch.Generator().manual_seed(0)
    made = [
        (f"row {row}", seed, 90 + float(torch.randn((), generator=draw)))
        for row in range(6)
        for seed in range(count)
    ]
    tidy = pd.DataFrame(made, columns=["row", "seed", "accuracy (%)"])
    tidy = tidy.assign(
        low=tidy["accuracy (%)"] - 1, high=tidy["accuracy (%)"] + 1, state="finished"
    )

    def tables() -> None:
        ablation.summary(tidy)
        ablation.pairwise(tidy)

    return tables


@dataclass(frozen=True)
class Growth:
    """How one piece of work grows.

    Args:
        of: in what ("images", "tokens", "classes", "seeds", "workers"). what: the work, in words. works: sizes, increasing.
        seconds, megabytes: at each (megabytes: peak above what the process held before; empty: not measured).
        expected: slopes of time and of memory for the largest sizes. note: what was expected, or why it broke off.
    """

    of: str
    what: str
    works: tuple[int, ...]
    seconds: tuple[float, ...]
    megabytes: tuple[float, ...]
    expected: tuple[float, float]
    note: str = ""
    failed: bool = False

    @property
    def slopes(self) -> tuple[float, float]:
        return slope(self.works, self.seconds), slope(self.works, self.megabytes)


# Function, in what it grows, the least work, expected slopes of time and memory, and why.
CASES: tuple[tuple[Callable[[int], Callable], str, int, tuple[float, float], str], ...] = (
    (images_probes, "images", 500, (1, 0), "batch by batch: memory stays"),
    (images_statistics, "images", 1000, (1, 1), "float64 copies of the features"),
    (images_epoch, "images", 256, (1, 0), "time by the step, memory of a step"),
    (
        tokens_probe,
        "tokens",
        49,
        (1, 1),
        "1 while products with weights lead, 2 where attention does",
    ),
    (classes_probes, "classes", 10, (0, 0), "one pass over the same images"),
    (classes_distances, "classes", 10, (1, 0), "one small matrix each"),
    (seeds_table, "seeds", 4, (0, 0), "a table of 6 rows: fixed cost leads"),
)


def slope(works: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of the power law that fits best; NaN with fewer than two positive values."""
    points = [
        (math.log(work), math.log(value))
        for work, value in zip(works, values, strict=False)
        if value > 0
    ]
    if len(points) < 2:
        return math.nan
    x, y = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def point(name: str, size: int) -> dict[str, float]:
    """Seconds (the quicker of two) and MB of growth (of the first, which has everything to allocate) of a case's work."""
    # A first call at the least size brings in libraries and thread pools, which are not what grows.
    case = next(case for case in CASES if case[0].__name__ == name)
    case[0](min(size, case[2]))()
    work, found = case[0](size), []

    def timed() -> None:
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)

    megabytes = peak_growth(timed)
    timed()
    return {"seconds": min(found), "megabytes": megabytes}


def point_apart(name: str, size: int) -> dict[str, float]:
    """`point` in a process of its own."""
    code = (
        f"import json; from bench.growth import point; print(json.dumps(point({name!r}, {size})))"
    )
    return json.loads(last_line_apart(code))


def measure(
    case: tuple, times: Sequence[int] = TIMES, measured: Callable[[str, int], dict] = point_apart
) -> Growth:
    """A case at so many times its least work; one that breaks off says why."""
    function, of, least, expected, why = case
    what = function.__doc__.rstrip(".")
    found = Growth(of, what, tuple(least * each for each in times), (), (), expected, why)
    try:
        for size in found.works:
            told = measured(function.__name__, size)
            found = replace(
                found,
                seconds=(*found.seconds, told["seconds"]),
                megabytes=(*found.megabytes, told["megabytes"]),
            )
    except Exception as error:  # whatever stops one must not stop the others
        traceback.print_exc()
        found = replace(found, note=f"failed: {type(error).__name__}: {error}"[:300], failed=True)
    return found


def line(row: Growth) -> str:
    """A growth as a row of a Markdown table."""

    def told(values: Sequence[float], unit: str) -> str:
        return " / ".join(map(number, values)) + f" {unit}" if values else "-"

    def against(found: float, expected: float) -> str:
        return "-" if math.isnan(found) else f"{found:.2f} ({expected:g})"

    works = " / ".join(f"{work:,}" for work in row.works)
    slopes = [against(*pair) for pair in zip(row.slopes, row.expected, strict=True)]
    shown = (
        row.of,
        row.what,
        works,
        told(row.seconds, "s"),
        slopes[0],
        told(row.megabytes, "MB"),
        slopes[1],
        row.note,
    )
    return f"| {' | '.join(shown)} |"


HEAD = (
    "| grows in | work | sizes | time | slope (expected) | peak memory, above | slope (expected) | |\n"
    "|---|---|---|---|---|---|---|---|"
)


def save(rows: Sequence[Growth], folder: Path, seconds: float) -> None:
    """growth.json, growth.md, growth.png and growth.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    save_json(
        folder / "growth.json",
        {
            "provenance": provenance(seconds),
            "rows": [
                asdict(row) | {"slopes": [None if math.isnan(s) else s for s in row.slopes]}
                for row in rows
            ],
        },
    )
    (folder / "growth.md").write_text("\n".join([HEAD, *map(line, rows)]) + "\n", encoding="utf-8")
    shown = [
        (f"time, by {row.of}", row.what, row.works, row.seconds, row.slopes[0], row.expected[0])
        for row in rows
        if row.seconds and len(row.seconds) == len(row.works)
    ]
    if shown:
        figure = growth_lines(shown)
        for kind in ("png", "svg"):
            figure.savefig(folder / f"growth.{kind}")


def run(
    only: str | None = None,
    out: str = "reports/bench",
    more: Sequence[Callable[[], Sequence[Growth]]] = (),
) -> int:
    """Measure all, or what grows in `only` (comma-separated), print a line each, write the folder; 1 if one broke off.

    Args:
        more: further measurements of the caller's, such as of workers, done last.

    Raises:
        WorkbenchError: if nothing grows in what `only` names.
    """
    known, start, rows = {case[1] for case in CASES}, time.perf_counter(), []
    wanted = known if only is None else {word.strip() for word in only.split(",")}
    if not wanted <= known:
        raise WorkbenchError(
            "nothing grows in that", expected="some of " + ", ".join(sorted(known)), got=only
        )
    print(HEAD)
    try:
        for make in [
            *(lambda case=case: [measure(case)] for case in CASES if case[1] in wanted),
            *more,
        ]:
            for row in make():
                rows.append(row)
                print(line(row), flush=True)
    finally:  # a run that is stopped keeps what it found
        save(rows, resolve(out), time.perf_counter() - start)
    return int(any(row.failed for row in rows))
