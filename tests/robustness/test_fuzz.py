"""Bad input, fuzzed: what is accepted is right, what is not is refused with a word on what, where and how to fix it.

No other kind of error, no hang, no memory blown up, nothing wrong taken in silently; at least 2,000 inputs by default.
"""

import atexit
import copy
import functools
import gzip
import io
import json
import math
import os
import resource
import shutil
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import (
    SEED,
    TIMES,
    TRIED,
    attempt,
    check_printable,
    damaged_bytes,
    damaged_json,
    fuzz,
    junk,
    names,
    numbers,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from dfkd_lib.ablation import read_grid
from dfkd_lib.core import REPOSITORY, ArtifactError, Store, load_tensors, save_tensors
from dfkd_lib.core.manifest import MANIFEST
from dfkd_lib.datasets import check_coco, load_coco, load_images, repair_coco
from dfkd_lib.datasets.sources import read_idx, read_image
from dfkd_lib.distill import AblationConfig, KDWeights
from dfkd_lib.losses import Schedule, read_schedules
from dfkd_lib.models import create_model, load_model, load_weights
from dfkd_lib.pipeline import make_plan, parameters, read_notebook
from dfkd_lib.training import TrainConfig
from dfkd_lib.training.checkpoint import Checkpoint

pytestmark = pytest.mark.fuzz

LEAST = 2000  # inputs in a default run
MEMORY = 3 << 30  # bytes of address space that all of it may take on top


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Whoever asks for gigabytes because a header says so gets a MemoryError, which is no clear message."""
    print(
        f"fuzzing {TIMES:g} times the default, seed {SEED if TIMES != 1 else 'none: the same inputs every time'}"
    )
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    except (OSError, ValueError):
        pass  # elsewhere than on Linux: without a bound
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def on_disk(name: str, data: bytes):
    """A file of this name and content, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


# ---- parameters

NOTEBOOKS = {
    path.stem: read_notebook(path)
    for path in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
}
TARGETS = [
    (declared, p)
    for declared in NOTEBOOKS.values()
    for p in declared.parameters.values()
    if p.name not in parameters.OWN
]
values = st.one_of(
    numbers.map(repr),
    names,
    st.lists(numbers.map(repr), max_size=4).map(",".join),
    st.sampled_from("true False None 1_0 +1 1, , 1,,2 0x10 1e3 １".split() + [" 1", "9" * 5000]),
)


@fuzz(300)
@given(st.sampled_from(TARGETS), values, st.integers(0, 9))
def test_set_words_that_name_a_parameter(target, text, damage):
    declared, parameter = target
    word = f"{declared.notebook}.{parameter.name}={text}"
    if damage == 0:
        word = word[: len(text)] + word[len(text) + 1 :]
    options = {"settings": [word], "only": declared.notebook}
    found, refused = attempt("set", make_plan, "smoke", **options)
    if refused or damage == 0:
        return
    value = found.parameters[declared.notebook][parameter.name]
    assert type(value) is type(parameter.default)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        setting = declared.tree.settings()[declared.setting(parameter.name)]
        assert math.isfinite(value) and value == float(text)
        assert setting.low is None or value >= setting.low
        assert setting.high is None or value <= setting.high
    elif isinstance(value, str):
        assert value == text
        check_printable(value)


@fuzz(80)
@given(
    st.one_of(names, st.text("0123456789._=,ab")),
    names,
    names,
    st.one_of(st.none(), st.integers(-3, 3)),
)
def test_other_words_of_the_command_line(word, profile, only, jobs):
    attempt("words", make_plan, "smoke", settings=[word])
    attempt("words", make_plan, profile)
    attempt("words", make_plan, "smoke", only=only, jobs=jobs)
    attempt("", make_plan, "smoke", grid=word)


# ---- grids and configurations

SETTINGS = AblationConfig().settings()

WHOLE = [name for name, setting in SETTINGS.items() if setting.kind is int]
ACCEPTED = ("", "\ufeffseeds: 0", "seeds: [0x10, 0o7, 1_0]")
GRID = {
    "base": {"source": "real", "student_epochs": 2},
    "rows": {"a": {"temperature": 2.0}, "b": {"kd_weight": 0.0}},
    "grid": {"student_lr": [0.001, 0.002], "mix": ["none", "cutmix"]},
    "drop_one": False,
    "seeds": [0, 1],
}
BOMB = (
    "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    + "grid: {student_lr: *a8}\n"
)
MERGED = "m0: &m0 {a: 1}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
)
YAMLS = [
    *("- ", "[" * 3000, "{" * 3000, "a: &a [*a]", "rows: &r {x: *r}", BOMB, MERGED, "\0"),
    "!!python/object/apply:os.system [ls]",
    "rows: {a: {temperature: 2001-99-99}}",
    "rows: {a: {}, a: {temperature: 2.0}}",
    *("? [1]\n: 2", "seeds: 0\nseeds: 1", "rows: {? {a: b} : c}", "%YAML 9.9\n---\na"),
    *("seeds: [2001-01-01]", "seeds: " + "9" * 5000, "---\na: 1\n---\nb: 2"),
    "grid: {" + ", ".join(f"{name}: {list(range(1, 40))}" for name in WHOLE) + "}",
    *("base: {student_model: [vit]}", "seeds: !!binary aGk=", "rows: !!set {a, b}"),
    *ACCEPTED,
]


def check_cells(cells) -> None:
    for cell in cells:
        assert isinstance(cell.seed, int) and 0 <= cell.seed < 2**32
        check_config(cell.config())
    assert len({(str(sorted(cell.settings.items())), cell.seed) for cell in cells}) == len(cells)


def check_config(config) -> None:
    """Every setting has the type of its default and is finite."""
    for name, setting in config.settings().items():
        value, kind = setting.default, SETTINGS[name].kind
        assert value is None or type(value) is kind, (name, value)
        assert kind is not float or value is None or math.isfinite(value), (name, value)


@fuzz(230)
@given(damaged_json(GRID, 4))
def test_grids(grid):
    cells, _ = attempt("grids", read_grid, grid)
    check_cells(cells or [])


@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
def test_grid_files_made_to_hurt(text):
    with on_disk("grid.yaml", text.encode()) as path:
        cells, _ = attempt("yaml", read_grid, path)
    check_cells(cells or [])
    assert cells is None or text in ACCEPTED, f"accepted: {text[:200]}"


@fuzz(200)
@given(
    st.one_of(
        st.text(" @.0123456789einfa-", max_size=20),
        st.lists(st.tuples(numbers, numbers).map("{0[0]}@{0[1]}".format), max_size=4).map(" ".join),
    ),
    st.floats(0, 1),
)
def test_schedules(text, progress):
    found, _ = attempt("schedules", Schedule.parse, text)
    if found:
        assert math.isfinite(found(progress)) and 0 <= found(progress) <= found.largest
    attempt("", read_schedules, f"kd: {text}; {text}", ("kd", "ce"))


@fuzz(250)
@given(st.data())
def test_settings_of_trainings(data):
    kind = data.draw(st.sampled_from([TrainConfig, KDWeights, AblationConfig]))
    start = {"epochs": 1, "batch_size": 1, "lr": 0.1} if kind is TrainConfig else {}
    name = data.draw(st.sampled_from(list(kind.model_fields)))
    made, _ = attempt(
        "settings", lambda: kind(**{**start, name: data.draw(st.one_of(numbers, junk))})
    )
    for setting in made.settings().values() if made else ():
        value = setting.default
        for number in value if isinstance(value, tuple | list) else [value]:
            assert not isinstance(number, float) or math.isfinite(number), (name, value)
            assert not isinstance(number, dict | list | set), (name, value)


# ---- images


def encoded(kind: str, image: Image.Image, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    """Whole files of many kinds, by name."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (12, 10, 3), np.uint8))
    grey16 = Image.fromarray((rng.integers(0, 65535, (12, 12))).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "png": encoded("PNG", rgb),
        "jpg": encoded("JPEG", rgb, exif=exif),
        "cmyk.jpg": encoded("JPEG", rgb.convert("CMYK")),
        "palette.png": encoded("PNG", rgb.convert("P")),
        "alpha.png": encoded("PNG", rgb.convert("RGBA")),
        "16.png": encoded("PNG", grey16),
        "1.png": encoded("PNG", rgb.convert("1")),
        "gif.png": encoded("GIF", rgb),
        "tif": encoded("TIFF", rgb),
        "lzw.tif": encoded("TIFF", rgb, compression="tiff_lzw"),
        "16.tif": encoded("TIFF", grey16),
        "f.tif": encoded("TIFF", Image.fromarray(np.ones((4, 4), np.float32) * 1e30)),
        "i.tif": encoded("TIFF", Image.fromarray(np.full((4, 4), 2**30, np.int32))),
        "animated.webp": encoded("WEBP", rgb, save_all=True, append_images=[rgb.rotate(90)]),
        "bmp": encoded("BMP", rgb),
        "animated.png": encoded("PNG", rgb, save_all=True, append_images=[rgb.rotate(180)]),
        "exif.webp": encoded("WEBP", rgb, exif=exif),
        "text.png": b"not an image",
        "empty.png": b"",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file pop\nshowpage\n",
        "svg.png": b"<svg/>",
        "ppm.png": b"P6 2 2 255 " + bytes(12),
        "pdf.png": b"%PDF-1.4\n",
        "line.png": encoded("PNG", rgb.resize((900, 1))),
    }


PICTURES = pictures()
NO_IMAGES = "text.png empty.png eps.png svg.png pdf.png f.tif i.tif".split()
HUGE = encoded("PNG", Image.new("1", (14000, 12000)))  # 168 million pixels in 20 kB


def load_image(path, size=None, channels=None) -> torch.Tensor:
    pixels = read_image(path, "L" if channels == 1 else "RGB", size, crop=True)
    return torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1)


def check_image(pixels, size, channels) -> None:
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == (channels or 3)
    assert not size or pixels.shape[1:] == (size, size)
    assert pixels.numel() > 0


@fuzz(420)
@given(st.data())
def test_image_files(data):
    name = data.draw(st.sampled_from(sorted(PICTURES)))
    whole = data.draw(st.integers(0, 5)) == 0
    content = PICTURES[name] if whole else data.draw(damaged_bytes(PICTURES[name] or b"\0"))
    size = data.draw(st.sampled_from([None, None, 8, 1]))
    channels = data.draw(st.sampled_from([None, 1, 3]))
    plain = whole and size is None and channels is None
    with on_disk(f"x.{name}", content) as path:
        pixels, refused = attempt("image files", load_image, path, size, channels)
        if pixels is None:
            assert not plain or name in NO_IMAGES, refused
            return
        check_image(pixels, size, channels)
        if plain and name in ("png", "bmp", "tif", "lzw.tif", "palette.png"):
            expected = np.asarray(Image.open(path).convert("RGB"))
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_too_large_to_be_one_is_refused(suffix):
    with on_disk(f"x.{suffix}", HUGE) as path:
        assert attempt("image files", load_image, path)[1]
        assert attempt("", load_image, path, 8)[1]


entries = st.sampled_from(
    "image damaged text link loop dangling outside folder hidden pipe other".split()
)
class_names = st.one_of(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
    ),
    st.sampled_from(
        ["a", "b", "\n", "\x1b[2J", "<b>", "..a", ".hidden", "café", "cafe\u0301", "a b", "%00"]
    ),
    st.binary(min_size=1, max_size=4).map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"_")),
)


@fuzz(160)
@given(
    st.lists(
        st.tuples(
            class_names, st.lists(st.tuples(st.sampled_from(sorted(PICTURES)), entries), max_size=3)
        ),
        max_size=3,
    ),
    st.sampled_from(["train", "test", "all", "val", "x", ""]),
    st.sampled_from([None, 4, 8]),
    st.sampled_from([0, 1, 2]),
)
def test_image_folders(classes, split, size, most):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        (Path(folder) / "secret.png").write_bytes(PICTURES["png"])
        for name, files in classes:
            base = root if split == "all" else root / "train"
            base /= name if isinstance(name, str) else name.decode(errors="surrogateescape")
            try:
                base.mkdir(parents=True, exist_ok=True)
            except OSError:
                assume(False)
            for index, (kind, what) in enumerate(files):
                put(base, f"{index}.{kind}", what, PICTURES[kind], root)
        found, _ = attempt(
            "image folders", load_images, str(root), split, size=size, max_images=most
        )
        if found is not None:
            assert found.pixels.dtype == torch.uint8 and found.pixels.numel()
            assert not size or found.shape == (3, size, size)
            assert int(found.labels.min()) >= 0 and int(found.labels.max()) < len(found.classes)
            assert len(set(found.classes)) == len(found.classes)
            for name in found.classes:
                check_printable(name)


def put(base: Path, name: str, what: str, content: bytes, root: Path) -> None:
    path = base / name
    if path.exists() or path.is_symlink():
        return
    links = {"link": root / "none.png", "loop": path, "dangling": "nothing"}
    links["outside"] = root.parent / "secret.png"
    files = {
        "image": (name, content),
        "damaged": (name, content[: len(content) * 2 // 3]),
        "hidden": (f".{name}", content),
        "text": (name, b"no image"),
        "other": (f"{name}.txt", content),
    }
    if what in links:
        path.symlink_to(links[what])
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        file, held = files[what]
        (base / file).write_bytes(held)


def idx(shape, body: bytes, head: bytes = b"\0\0\x08") -> bytes:
    sizes = struct.pack(f">{len(shape)}I", *(n % 2**32 for n in shape))
    return head + bytes([len(shape) % 256]) + sizes + body


IMAGES = idx((3, 4, 4), bytes(range(48)))
ODD_SHAPES = [(2**31, 2**31, 4), (2**32 - 1,), (0,), (3, 0, 0), (), (1,) * 70, (2**16, 2**16)]
ODD_SHAPES += [(1,) * 255, (2**32 - 1,) * 4, (48,), (12, 4), (2**40 % 2**32, 1)]
SHAPES = st.one_of(
    st.sampled_from(ODD_SHAPES), st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple)
)


@fuzz(180)
@given(
    st.one_of(
        st.tuples(SHAPES, st.integers(0, 60)).map(
            lambda p: gzip.compress(idx(p[0], bytes(p[1])), 1)
        ),
        damaged_bytes(IMAGES, 16).map(lambda raw: gzip.compress(raw, 1)),
        damaged_bytes(gzip.compress(IMAGES, 1, mtime=0), 10),
        st.binary(max_size=40),
    )
)
def test_idx_files(data):
    with on_disk("x.gz", data) as path:
        found, _ = attempt("idx", read_idx, path)
    if found is not None:
        raw = gzip.decompress(data)
        assert found.dtype == np.uint8 and found.ndim == raw[3]
        assert found.tobytes() == raw[4 + 4 * found.ndim :]


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(IMAGES)
        for _ in range(400):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert attempt("idx", read_idx, path)[1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# ---- annotations


def coco() -> dict:
    sides = {"width": 20, "height": 20}
    box = {"bbox": [2.0, 3, 6, 5], "area": 30, "iscrowd": 0}
    pairs = [(k, c) for k in (1, 2) for c in (1, 2)]
    return {
        "info": {"year": 2024},
        "categories": [{"id": 1, "name": "bird"}, {"id": 2, "name": "plane"}],
        "images": [{"id": k, "file_name": f"{k}.png", **sides} for k in (1, 2)],
        "annotations": [
            {"id": 10 * k + c, "image_id": k, "category_id": c, **copy.deepcopy(box)}
            for k, c in pairs
        ],
    }


PIXELS = {k: encoded("PNG", Image.new("RGB", (20, 20), (k * 50, 0, 0))) for k in (1, 2, 3)}
boxes = st.lists(st.one_of(st.integers(-5, 25), numbers), min_size=3, max_size=5)


@contextmanager
def coco_folder(text: bytes):
    """A COCO folder `set` with these annotations, and a picture beside it."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "set"
        (folder / "train").mkdir(parents=True)
        for key, content in PIXELS.items():
            (folder / "train" / f"{key}.png").write_bytes(content)
        (Path(top) / "secret.png").write_bytes(PIXELS[1])
        (folder / "train.json").write_bytes(text)
        yield folder


def check_scenes(scenes, content) -> None:
    """Boxes in the image with some area, and each is one of the file's own, of the class that the file says."""
    assert scenes.pixels.dtype == torch.uint8 and len(scenes.pixels)
    said = {}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            said.setdefault(annotation["image_id"], []).append(annotation)
    ordered = sorted(content["categories"], key=lambda c: (isinstance(c["id"], str), c["id"]))
    for entry, some, labels in zip(content["images"], scenes.boxes, scenes.labels, strict=True):
        mine = said.get(entry["id"], [])
        assert len(some) == len(labels) == len(mine)
        for box, label, annotation in zip(some, labels, mine, strict=True):
            assert torch.isfinite(box).all() and (box[2:] > 0).all()
            low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
            assert (low >= -1e-5).all() and (high <= 1 + 1e-5).all()
            assert ordered[int(label)]["id"] == annotation["category_id"]
            x, y, width, height = annotation["bbox"]
            expected = torch.tensor([x, y, x + width, y + height]) / 20
            slack = 0.5 / 20 + 1e-5  # for rounding
            assert (torch.cat([low, high]) - expected).abs().max() <= slack
    for name in scenes.classes:
        check_printable(name)


@fuzz(320)
@given(
    st.one_of(
        damaged_json(coco()),
        damaged_json(coco(), 2, st.one_of(boxes, numbers, names)),
        st.tuples(boxes, st.integers(0, 3)).map(lambda p: with_box(*p)),
    )
)
def test_annotations(content):
    text = json.dumps(content).encode()
    with coco_folder(text) as folder:
        scenes, _ = attempt("annotations", load_coco, folder, "train")
        report, _ = attempt("", check_coco, folder)
        if scenes is not None:
            check_scenes(scenes, json.loads(text))
            assert report is not None and not report.fatal
        if report is not None:
            check_printable(report.text())


def with_box(box, place: int) -> dict:
    content = coco()
    content["annotations"][place]["bbox"] = box
    return content


TEXTS = ["", "null", "[]", "{}", "1" * 5000, "[" * 100_000, '{"a":' * 50_000, "{'a': 1}", '"x"']
TEXTS += ['{"images": 1e99999}', "\ufeff{}", '{"images": [], "images": [{}]}']
TEXTS += [json.dumps(coco()).replace("20", "9" * 5000, 1)]


@fuzz(120)
@given(
    st.one_of(
        damaged_bytes(json.dumps(coco()).encode(), 600),
        st.binary(max_size=30),
        st.sampled_from(TEXTS).map(str.encode),
    )
)
def test_annotation_files(data):
    with coco_folder(data) as folder:
        scenes, _ = attempt("annotations", load_coco, folder, "train")
        if scenes is not None:
            check_scenes(scenes, json.loads(data))


@fuzz(200)
@given(damaged_json(coco(), 4), st.booleans())
def test_repair(content, link):
    with coco_folder(json.dumps(content).encode()) as folder:
        top, out = folder.parent, folder.parent / "out"
        if link:
            (folder / "train" / "4.png").symlink_to(top / "secret.png")
        done, _ = attempt("repair", repair_coco, folder, out, ("train",))
        assert {p.name for p in top.iterdir()} <= {"set", "secret.png", "out"}
        assert {p.name for p in out.glob("*")} <= {"train", "train.json", "repairs.csv"}
        if done is None:
            assert not out.exists()
            return
        report, _ = attempt("", check_coco, out)
        assert not report.fatal, report.text()
        scenes, _ = attempt("", load_coco, out, "train")
        check_scenes(scenes, json.loads((out / "train.json").read_text()))


# ---- checkpoints

MODEL = {
    "model": "vit_mnist_smoke",
    "overrides": {"num_classes": 4},
    "classes": ["a", "b", "c", "d"],
}


def tiny():
    torch.manual_seed(0)
    return create_model("vit_mnist_smoke", num_classes=4).eval()


def tensor_bytes(tensors: dict) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder) / "x", tensors)
        return (Path(folder) / "x").read_bytes()


STATE = tiny().state_dict()
WEIGHTS = tensor_bytes(STATE)
HEAD = 8 + int.from_bytes(WEIGHTS[:8], "little")


def header_lie(change) -> bytes:
    """WEIGHTS with another header."""
    header = json.dumps(change(json.loads(WEIGHTS[8:HEAD]))).encode()
    return struct.pack("<Q", len(header)) + header + WEIGHTS[HEAD:]


def check_loaded(model, tensors: dict) -> None:
    """Finite weights, those that the file says."""
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, tensors[name].to(value.dtype)), name


@fuzz(280)
@given(
    st.one_of(
        damaged_bytes(WEIGHTS, HEAD),
        st.just(json.loads(WEIGHTS[8:HEAD]))
        .flatmap(lambda header: damaged_json(header, 2))
        .map(lambda header: header_lie(lambda _: header)),
        st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n) + WEIGHTS[8:]),
        st.binary(max_size=40),
    )
)
def test_weight_files(data):
    with on_disk("m.safetensors", data) as path:
        path.with_suffix(".json").write_text(json.dumps(MODEL))
        loaded, _ = attempt("weights", load_model, str(path))
        if loaded is not None:
            check_loaded(loaded.model, load_tensors(path))


def other_weights(data):
    """Tensors with a value, a type, a shape or a name that does not fit."""
    tensors = dict(STATE)
    name = data.draw(st.sampled_from(sorted(tensors)))
    dtypes = {"int": torch.int8, "half": torch.float16, "bool": torch.bool}
    dtypes["complex"] = torch.complex64
    kinds = "nan inf huge int half shape missing extra deeper bool complex".split()
    how = data.draw(st.sampled_from(kinds))
    value = tensors[name].clone()
    if how in ("nan", "inf"):
        value.view(-1)[data.draw(st.integers(0, value.numel() - 1))] = float(how)
    elif how == "huge":
        value = value.double() * 1e300 + 1e300
    elif how in dtypes:
        value = value.to(dtypes[how])
    elif how == "shape":
        value = value.reshape(-1, *([1] * data.draw(st.integers(1, 3))))
    tensors[name] = value
    if how == "missing":
        del tensors[name]
    elif how == "extra":
        tensors["something.else"] = value
    elif how == "deeper":
        second = {key: one for key, one in STATE.items() if "blocks.1" in key}
        tensors |= {key.replace("blocks.1", "blocks.2"): one for key, one in second.items()}
    return how, tensors


@fuzz(90)
@given(st.data())
def test_weights_that_do_not_fit(data):
    how, tensors = other_weights(data)
    model = tiny()
    _, refused = attempt("weights", load_weights, model, tensors, "a file")
    same = how == "shape" and all(tensors[n].shape == STATE[n].shape for n in STATE)
    assert (refused is None) == (how == "half" or same), how
    if refused is None:
        check_loaded(model, tensors)


@fuzz(150)
@given(
    st.one_of(
        damaged_json({**MODEL, "overrides": {**MODEL["overrides"], "depth": 2, "width": 16}}, 2),
        junk,
    )
)
def test_records_beside_weights(record):
    with on_disk("m.safetensors", WEIGHTS) as path:
        path.with_suffix(".json").write_text(json.dumps(record))
        loaded, _ = attempt("records", load_model, str(path))
        if loaded is not None:
            check_loaded(loaded.model, STATE)
            assert loaded.classes is None or len(loaded.classes) == 4
            for name in loaded.classes or ():
                check_printable(name)


@functools.cache
def sound_store() -> Path:
    """A store with one artifact, made once: what is drawn from its manifest must be the same for every input."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    make_artifact(Path(folder.name) / "store")
    return Path(folder.name) / "store"


def make_artifact(root: Path):
    def make(folder):
        save_tensors(folder / "model.safetensors", {"w": torch.arange(6.0)})
        (folder / "history.json").write_text("[]")
        return {"accuracy": 0.5}

    return Store(root).get_or_make("thing", {"a": 1}, make)


@fuzz(110)
@given(st.data())
def test_manifests(data):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(sound_store(), Path(folder) / "store")
        made = make_artifact(Path(folder) / "store")  # found
        text = data.draw(
            st.one_of(
                damaged_json(made.manifest, 2).map(json.dumps).map(str.encode),
                damaged_bytes(json.dumps(made.manifest).encode(), 300),
            )
        )
        (made.path / MANIFEST).write_bytes(text)
        found, refused = attempt("manifests", Store(Path(folder) / "store").find, made.key)
        assert refused is None or isinstance(refused, ArtifactError)
        if found is not None:
            found.stage, found.settings, found.metrics, found.ledger, found.parents, found.seconds
            assert found.stage == "thing" and found.settings == {"a": 1} and found.parents == []
            assert torch.equal(found.tensors()["w"], torch.arange(6.0))


def resumed(data: bytes):
    """What a training would go on from: (history, weights, momenta), or the refusal."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with on_disk("checkpoint.pt", data) as path:
        saved = Checkpoint(path.parent, {"model": model}, {"one": optimizer})
        history, refused = attempt("resume", saved.load)
    return None if refused else (history, model.state_dict(), optimizer.state_dict())


def checkpoint_bytes() -> bytes:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        Checkpoint(folder, {"model": model}, {"one": optimizer}).save([{"epoch": 1}])
        return (Path(folder) / "checkpoint.pt").read_bytes()


CHECKPOINT = checkpoint_bytes()
RESUMED = resumed(CHECKPOINT)
TRIED.clear()  # what is whole is no fuzzed input


@fuzz(160)
@given(damaged_bytes(CHECKPOINT, len(CHECKPOINT)))
def test_checkpoints_to_resume(data):
    found = resumed(data)
    if found is not None and found[0]:  # no history: it starts afresh
        assert repr(found) == repr(RESUMED), "resumed from something else"


def test_enough_inputs_were_tried(request):
    """Last in this file: all of it must have run."""
    tests = {item.originalname for item in request.session.items if item.path == request.path}
    if not {name for name in globals() if name.startswith("test_")} <= tests:
        pytest.skip("only a part of the fuzz tests was asked for")
    print(f"\n{sum(TRIED.values())} inputs: {dict(TRIED)}")
    assert sum(TRIED.values()) >= LEAST * min(TIMES, 1)
