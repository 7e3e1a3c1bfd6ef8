"""What others may have made is data: no file runs code when it is read, no name leads out of its folder, nobody elsewhere is
listened to, and a page does nothing but show."""

import ast
import asyncio
import base64
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import browser
import nbformat
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dfkd_lib.ablation import read_grid, saved_jobs
from dfkd_lib.core import REPOSITORY, ArtifactError, Store, WorkbenchError
from dfkd_lib.core.manifest import MANIFEST
from dfkd_lib.datasets import load_coco, load_images, repair_coco
from dfkd_lib.datasets.cifar import read_cifar
from dfkd_lib.models import WeightsMissing, load_model
from dfkd_lib.pipeline import html, index
from dfkd_lib.pipeline.clean import clean
from dfkd_lib.reporting import report
from dfkd_lib.training.checkpoint import Checkpoint

LIBRARY = REPOSITORY / "dfkd_lib"
MODULES = sorted(LIBRARY.rglob("*.py"))
LOOPBACK = ("127.0.0.1", "::1")


# ---- pickles: by reading the code

PICKLERS = (
    "pickle cPickle _pickle dill joblib cloudpickle shelve marshal jsonpickle pandas.read_pickle"
).split()
# An unpickler that can call nothing; a step of the user's own on its way between two processes of the user's.
MAY_IMPORT = ("datasets/cifar.py", "core/sent.py")
MAY_RUN = {
    # A notebook of this repository, which is code, in this process.
    "pipeline/here.py": {"exec", "compile"},
    # The source of functions that are loaded already, compiled to be compared and never run.
    "core/source.py": {"compile"},
    "core/sent.py": {"pickle.loads"},
}
RUNS = {"eval", "exec", "compile", "__import__"}
LOADS = (
    "torch.hub.load torch.jit.load torch.package.PackageImporter torch.export.load joblib.load yaml.unsafe_load "
    "yaml.full_load os.system os.popen tarfile.open shutil.unpack_archive"
).split()
LAST = "read_pickle extractall unpack_archive load_state_dict_from_url".split()


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def unsafe_calls(tree: ast.AST) -> list[str]:
    """What in a module's calls may run code that lies in a file."""
    found = []
    for node, called, given in calls(tree):
        last, arguments = called.split(".")[-1], [ast.unparse(a) for a in node.args]
        remote = given.get("trust_remote_code", "False") not in ("False", "True and False")
        loader = ["yaml.SafeLoader", "Plain"]
        reasons = {
            called: called in LOADS
            or called in RUNS
            or last in LAST
            or called in ("pickle.load", "pickle.loads", "pickle.Unpickler"),
            "torch.load without weights_only=True": called.endswith("torch.load")
            and given.get("weights_only") != "True",
            "allow_pickle or trust_remote_code": given.get("allow_pickle") == "True" or remote,
            "yaml.load without a safe loader": called == "yaml.load"
            and not set(arguments[1:]) & set(loader),
            "from_pretrained without use_safetensors=True": last == "from_pretrained"
            and not re.search("Config|ImageProcessor", called)  # of JSON alone
            and given.get("use_safetensors") != "True",
            "timm would fetch and unpickle": called == "timm.create_model"
            and given.get("pretrained", "False") != "False",
            "a shell": given.get("shell") == "True",
        }
        found += [f"{node.lineno}: {reason}" for reason, is_so in reasons.items() if is_so]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_no_module_can_run_what_a_file_says(path):
    tree, name = ast.parse(path.read_text()), str(path.relative_to(LIBRARY))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    wrong = [m for m in imported if m.split(".")[0] in PICKLERS and name not in MAY_IMPORT]
    may = MAY_RUN.get(name, ())
    unsafe = [found for found in unsafe_calls(tree) if found.split(": ")[1] not in may]
    assert not wrong + unsafe, name


UNSAFE = (
    "torch.load(p)|torch.load(p, weights_only=False)|np.load(p, allow_pickle=True)|pd.read_pickle(p)|pickle.loads(b)|"
    "yaml.load(t, yaml.Loader)|yaml.load(t)|AutoModel.from_pretrained(p)|eval(t)|tar.extractall(p)|"
    "subprocess.run(t, shell=True)|timm.create_model(n, pretrained=True)|"
    "AutoConfig.from_pretrained(p, trust_remote_code=True)"
)


@pytest.mark.parametrize("source", UNSAFE.split("|"))
def test_the_check_of_the_code_sees_what_it_is_for(source):
    assert unsafe_calls(ast.parse(source))


# ---- pickles: by offering one at every door


class Payload:
    """Pickled, it makes a file when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "payload-ran"
    yield path
    assert not path.exists(), "a file's code has run"


def test_the_payload_works(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize(
    "write",
    [
        lambda payload, path: torch.save(payload, path),
        lambda payload, path: torch.save({"modules": payload, "history": []}, path),
        lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False),
        lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    ],
)
def test_a_checkpoint_to_resume_runs_nothing(write, marker, tmp_path, capsys):
    write(Payload(marker), tmp_path / "checkpoint.pt")
    try:
        assert Checkpoint(tmp_path, {"model": torch.nn.Linear(1, 1)}, {}).load() == []
        assert "checkpoint is damaged" in capsys.readouterr().out  # set aside, with a word
    except WorkbenchError as error:
        assert error.fix and error.where


@pytest.mark.parametrize(
    "name",
    ["model.pth", "model.pt", "pytorch_model.bin", "model.ckpt", "model.safetensors", "model.pkl"],
)
def test_weights_run_nothing(name, marker, tmp_path):
    torch.save(Payload(marker), tmp_path / name)
    for words in [
        (str(tmp_path / name),),
        ("vit_mnist_smoke", tmp_path / name),
        ("vit_tiny_patch16_224", tmp_path / name),
    ]:
        with pytest.raises(WorkbenchError):
            load_model(*words)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "vit_tiny_patch16_224"},
        {"model_type": "vit", "architectures": ["X"]},
        {
            "model_type": "mine",
            "auto_map": {"AutoConfig": "code.C", "AutoModelForImageClassification": "code.M"},
        },
    ],
)
def test_a_model_folder_runs_nothing(config, marker, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    torch.save(Payload(marker), folder / "pytorch_model.bin")
    with pytest.raises(WorkbenchError):
        load_model(str(folder))


def test_arrays_of_objects_are_refused(marker, tmp_path):
    from dfkd_lib.synthesis.make import open_images

    payload = np.empty((1,), object)
    payload[0] = Payload(marker)

    def make(work):
        np.save(work / "images.npy", payload, allow_pickle=True)

    kept = Store(tmp_path / "store").get_or_make("synthetic", {"classes": ["a"]}, make)
    with pytest.raises((WorkbenchError, ValueError)):
        open_images(kept)


def test_a_matlab_file_runs_nothing(marker, tmp_path):
    pytest.importorskip("mcos_decoder")
    from aerial4 import read_labels

    for content in (pickle.dumps(Payload(marker)), gzip.compress(pickle.dumps(Payload(marker)))):
        (tmp_path / "x_LABELS.mat").write_bytes(content)
        with pytest.raises(Exception):  # noqa: B017 - any error: the builder skips what cannot be read
            read_labels(tmp_path / "x_LABELS.mat")


class OfPython2(pickle._Pickler):
    """Pickles as the authors of CIFAR did: bytes as Python 2's strings."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def cifar_batch(content) -> bytes:
    file = io.BytesIO()
    OfPython2(file, 2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A function that writes a test batch and the class names of CIFAR-10, and makes torchvision know their checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(batch: bytes, names: bytes | None = None) -> Path:
        names = names or cifar_batch({"label_names": [f"class {k}" for k in range(10)]})
        (folder / "test_batch").write_bytes(batch)
        (folder / "batches.meta").write_bytes(names)
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(batch).hexdigest()]])
        monkeypatch.setattr(
            CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(names).hexdigest()}
        )
        return tmp_path / "data"

    return write


def test_cifar_is_read_as_its_authors_wrote_it(cifar):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
    batch = cifar_batch(
        {"data": pixels, "labels": [3, 1, 4, 1, 5], "batch_label": "testing batch 1 of 1"}
    )
    assert b"cnumpy.core.multiarray\n_reconstruct" in batch and b"_codecs" not in batch
    found = load_images("cifar10", "test", root=cifar(batch))
    assert torch.equal(found.pixels, torch.from_numpy(pixels).reshape(5, 3, 32, 32))
    assert found.labels.tolist() == [3, 1, 4, 1, 5]
    assert found.classes[9] == "class 9"
    assert found.split == "cifar10/test"


def test_cifar_runs_nothing(cifar, marker):
    """Not even where somebody has made the checksums fit."""
    evil = pickle.dumps({"data": Payload(marker), "labels": []})
    fine = cifar_batch({"data": np.zeros((1, 3072), np.uint8), "labels": [0]})
    for files in ((evil,), (fine, evil)):
        root = cifar(*files)
        with pytest.raises(WorkbenchError, match="which images do not need"):
            read_cifar("cifar10", "test", root, False)


def test_cifar_of_others_is_refused(cifar, monkeypatch):
    from torchvision.datasets import CIFAR10

    root = cifar(cifar_batch({"data": np.zeros((1, 3072), np.uint8), "labels": [0]}))
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", "0" * 32]])
    with pytest.raises(WorkbenchError, match="not the file of its authors"):
        read_cifar("cifar10", "test", root, False)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['{}']",
        "rows: !!python/object/new:os.mkdir ['{}']",
        "base: !!python/name:os.system",
    ],
)
def test_yaml_runs_nothing(text, marker, tmp_path):
    (tmp_path / "grid.yaml").write_text(text.format(marker))
    with pytest.raises(WorkbenchError, match="a grid cannot be read"):
        read_grid(tmp_path / "grid.yaml")


def test_postscript_in_an_image_file_is_not_run(marker, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, a program that may write files, whatever the file's name says."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\nmkdir {marker}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(WorkbenchError, match="cannot be read"):
        load_images(str(tmp_path / "set"), "all")
    source = (LIBRARY / "deploy" / "predict.py").read_text()
    assert "Image.open(path, formats=FORMATS)" in source and '"EPS"' not in source


# ---- paths

OUTSIDE = (
    "../secret.png ../../secret.png a/../../secret.png {top}/secret.png ..\\secret.png C:\\secret.png "
    "//server/secret.png a/../../../etc/passwd"
).split()


@pytest.fixture
def coco(tmp_path):
    """A function that writes a COCO folder of two images, one of them under a name of one's choice."""
    (tmp_path / "set" / "train").mkdir(parents=True)
    for name in ("secret.png", "set/train/1.png", "set/train/2.png"):
        Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / name)

    def write(name: str) -> Path:
        size, names = {"width": 20, "height": 20}, enumerate((name, "2.png"), 1)
        images = [{"id": place, "file_name": name, **size} for place, name in names]
        notes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 5, 5]} for k in (1, 2)]
        content = {
            "images": images,
            "annotations": notes,
            "categories": [{"id": 1, "name": "bird"}],
        }
        (tmp_path / "set" / "train.json").write_text(json.dumps(content))
        return tmp_path / "set"

    return write


@pytest.mark.parametrize("name", OUTSIDE)
def test_annotations_cannot_name_files_elsewhere(name, coco, tmp_path):
    folder = coco(name.format(top=tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(WorkbenchError, match="not whole"):
        load_coco(folder, "train")
    repair_coco(folder, tmp_path / "out", ("train",))
    kept = json.loads((tmp_path / "out" / "train.json").read_text())
    assert [entry["file_name"] for entry in kept["images"]] == ["2.png"]
    new = {path for path in tmp_path.rglob("*") if path not in before}
    assert all(path.is_relative_to(tmp_path / "out") for path in new), new


def test_annotations_may_name_files_in_folders_below(coco, tmp_path):
    folder = coco("a/1.png")
    (folder / "train" / "a").mkdir()
    shutil.move(folder / "train" / "1.png", folder / "train" / "a" / "1.png")
    assert len(load_coco(folder, "train")) == 2


def test_a_folder_that_is_a_link_is_the_users_own_choice(coco, tmp_path):
    (tmp_path / "link").symlink_to(coco("1.png"))
    assert len(load_coco(tmp_path / "link", "train")) == 2


@pytest.mark.parametrize("split", ["../set/train", "/etc/train", "a/b", "", "..", "a\\..\\b\0"])
def test_a_split_is_a_name(split, coco, tmp_path):
    folder = coco("1.png")
    with pytest.raises(WorkbenchError):
        repair_coco(folder, tmp_path / "out", (split,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", "x\0", "a b", "", "<b>"])
def test_figures_and_tables_stay_in_their_folder(name, tmp_path):
    import matplotlib.pyplot as plt
    import pandas as pd

    kept = report.Report("10_x", tmp_path / "out")
    figure = plt.figure()
    with pytest.raises(WorkbenchError, match="no file name"):
        kept.figure(figure, name, "caption")
    with pytest.raises(WorkbenchError, match="no file name"):
        kept.table(pd.DataFrame({"a": [1]}), name, "caption")
    plt.close(figure)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


FORMULAS = "=HYPERLINK(1)", "@SUM(1)", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "\t=1+1"


@pytest.mark.parametrize("cell", [*FORMULAS, "-", "-1.5", "+ patch", "car (red)", "±0.1"])
def test_no_cell_of_a_table_is_a_formula(cell, tmp_path):
    import pandas as pd

    made = report.Report("10_x", tmp_path)
    made.table(pd.DataFrame({cell: [cell, "x"], "number": [-1.5, 2.0]}), "cells", "caption")
    shown = pd.read_csv(tmp_path / "tables" / "cells.csv", dtype=str)
    assert list(shown["number"]) == ["-1.5", "2.0"]
    written = "'" + cell if cell in FORMULAS else cell
    assert (shown.columns[0], shown.iloc[0, 0]) == (written, written)


def page_of(out: Path, saved: dict, name: str = "10_x", **result) -> str:
    """The text of the index of a run with one notebook, whose report saved this."""
    (out / "metrics").mkdir(parents=True, exist_ok=True)
    (out / "metrics" / f"{name}.json").write_text(json.dumps(saved))
    machine = {"cpu": "c", "cores": 1, "memory_gib": 1, "system": "s", "gpu": None}
    about = {"git": {"commit": "x", "dirty": False}, "hardware": machine, "versions": {}}
    about |= {"seeds": {}, "command": "c", "started": "now", "seconds": 1.0}
    entry = {"status": "succeeded", "seconds": 1.0, "parameters": {}, "metrics": {}}
    entry |= {"peak_memory_mb": 1, **result}
    run = {"profile": "p", "provenance": about, "notebooks": {name: entry}}
    return index.write_index(out, run, {}).read_text()


@pytest.mark.parametrize("name", ["../secret", "../../secret", "{top}/secret", 5, None, ["a"]])
def test_a_page_shows_nothing_from_elsewhere(name, tmp_path):
    (tmp_path / "secret.csv").write_text("a\ntop secret")
    (tmp_path / "secret.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' id='topsecret'/>")
    name = name.format(top=tmp_path) if isinstance(name, str) else name
    entry = {"name": name, "caption": "c", "paper": "A Fig. 1"}
    for part in ("figures", "tables"):
        (tmp_path / "out" / part).mkdir(parents=True)
    text = page_of(tmp_path / "out", {"figures": [entry], "tables": [entry], "artifacts": []})
    assert "top secret" not in text and base64.b64encode(b"<svg xmlns").decode()[:10] not in text


def test_markdown_embeds_no_other_file(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"\x89PNG top secret")
    text = "![x](secret.png) ![y](../../etc/passwd) <img src='secret.png'>"
    cell = nbformat.v4.new_markdown_cell(text)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    html.write_notebook_page(tmp_path / "n.ipynb", tmp_path / "n.html")
    page = (tmp_path / "n.html").read_text()
    assert base64.b64encode(b"\x89PNG top secret").decode()[:12] not in page


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_manifest_cannot_vouch_for_files_elsewhere(name, tmp_path):
    store = Store(tmp_path / "store")
    made = store.get_or_make("thing", {}, lambda work: (work / "a").write_text("x") and None)
    (tmp_path / "secret").write_text("x")
    manifest = {**made.manifest, "files": {name: "0" * 64}}
    (made.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError):
        store.find(made.key)


@pytest.mark.parametrize("job", ["../x", "/etc/passwd", "..", "", "*", "a/b"])
def test_jobs_are_found_by_their_ids_alone(job, tmp_path):
    queue = saved_jobs(Store(tmp_path / "store"))
    (tmp_path / "store" / "x.json").write_text('{"state": "queued"}')
    for call in (queue.stop, queue.forget):
        with pytest.raises(WorkbenchError, match="no such job"):
            call(job)


@pytest.mark.parametrize(
    "name", ["../../x", "owner/../../x", "owner/na me", "owner/name@../x", "a/b/c", "owner/.."]
)
def test_names_of_the_hub_are_names(name):
    with pytest.raises((WorkbenchError, WeightsMissing)):
        load_model(name)


# ---- pages

BAD = "</td></pre><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><svg onload=alert(1)>"
EVIL = [
    BAD,
    "<iframe src='https://example.org/frame'></iframe><iframe srcdoc='<script>parent.document.title=1</script>'></iframe>",
    "<meta http-equiv=refresh content='0;url=https://example.org/refresh'>",
    "<base href='https://example.org/base/'>",
    "<form action='https://example.org/form'><button autofocus formaction='javascript:document.title=1'>b</button></form>",
    "<a id=go href='javascript:document.title=`pwned`'>click</a><a href='data:text/html,<script>alert(1)</script>'>d</a>",
    "<a href=' java\tscript:document.title=`pwned`'>click</a><a href='//example.org/plain'>p</a>",
    "<link rel=stylesheet href='https://example.org/link.css'><style>@import 'https://example.org/import.css';</style>",
    "<div style=\"background:url('https://example.org/url.png')\">u</div><style>body{background:url(https://example.org/s)}</style>",
    "<img src='https://example.org/pixel.png' srcset='https://example.org/set.png 2x'><video poster='https://example.org/p'>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=alert(1)&gt;'>",
    "<details open ontoggle=\"document.title='pwned'\"><summary>s</summary></details><object data='https://example.org/o'></object>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'></noscript><template><script>alert(1)</script></template>",
    "<svg><script>document.title='pwned'</script><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<input autofocus onfocus=\"document.title='pwned'\"><body onload=\"document.title='pwned'\">",
    "[click](javascript:document.title='pwned') ![x](https://example.org/md.png) [e](data:text/html;base64,PHNjcmlwdD4=)",
]
SVG = (
    "<svg xmlns='http://www.w3.org/2000/svg' onload=\"document.title='pwned'\" width='20' height='20'><script>document.title='pwned'"
    "</script><image href='https://example.org/svg.png'/><foreignObject><meta http-equiv='refresh' "
    "content='0;url=https://example.org/f'/></foreignObject><rect width='9' height='9'/></svg>"
)


def hostile_notebook(path: Path) -> None:
    """An executed notebook whose outputs try everything."""
    output = nbformat.v4.new_output
    onerror = "\" onerror=\"document.title='pwned'"
    formulas = "$\\frac{a}{b}$ $\\href{javascript:alert(1)}{x}$"
    text = "\n\n".join([f"# Title {BAD}", *EVIL, formulas, "![a](attachment:x.png)"])
    tags = ["x\"><script>document.title='pwned'</script>"]
    cells = [
        nbformat.v4.new_markdown_cell(text, attachments={"x.png": {f"image/png{onerror}": "AAAA"}}),
        nbformat.v4.new_code_cell(f"print({BAD!r})", metadata={"tags": tags}),
    ]
    shown = [
        *({"text/html": evil, "text/plain": BAD} for evil in EVIL),
        *({"text/markdown": evil} for evil in EVIL),
        {"application/javascript": "document.title='pwned'", "text/plain": "js"},
        {"image/svg+xml": SVG},
        {"text/latex": f"$x$ {BAD}", "text/plain": "latex"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": BAD}, "text/plain": BAD},
        {"application/json": {BAD: BAD}, "text/plain": "json"},
        {"text/html": f"<table><tr><th>class</th></tr><tr><td>{BAD}</td></tr></table>"},
    ]
    image = {"image/png": {"width": f"9{onerror}", "alt": onerror}}
    cells[1].outputs = [
        *(output("display_data", one) for one in shown),
        output("display_data", {"image/png": f"AAAA{onerror}"}, metadata=image),
        output("stream", name="stdout", text=BAD + "\x1b]8;;javascript:alert(1)\x1b\\x\x1b[31mred"),
        output("error", ename=BAD, evalue=BAD, traceback=[BAD, "\x1b[31m" + BAD]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"title": BAD}), path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run folder with a hostile notebook's page, and an index full of hostile names."""
    out = tmp_path_factory.mktemp("run")
    for part in ("figures", "tables"):
        (out / part).mkdir()
    name = "10_x"
    hostile_notebook(out / f"{name}.ipynb")
    html.mark_failure(out / f"{name}.ipynb", BAD, 1)
    html.write_notebook_page(out / f"{name}.ipynb", out / f"{name}.html")
    (out / "figures" / "f.svg").write_text(SVG)
    (out / "tables" / "t.csv").write_text(
        "class,ours\n" + json.dumps(BAD).replace('\\"', '""') + ",5\n"
    )
    entry = {"caption": BAD, "paper": BAD}
    shown = {"figures": [{**entry, "name": "f"}], "tables": [{**entry, "name": "t"}]}
    named = {BAD: BAD}
    page_of(
        out,
        {**shown, "artifacts": []},
        name,
        error=BAD,
        metrics=named,
        parameters={**named, "data": BAD},
        status="failed",
    )
    return out


@pytest.mark.parametrize("page", ["index", "10_x"])
def test_a_hostile_page_holds_nothing_that_acts(pages, page):
    from bs4 import BeautifulSoup

    soup = BeautifulSoup((pages / f"{page}.html").read_text(), "html.parser")
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    for rule in ("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"):
        assert rule in policy
    assert "script-src" not in policy  # there is no script of ours: default-src forbids every one
    acts = "script iframe object embed form base link input button video audio svg template".split()
    assert not soup.find_all(acts) and len(soup.find_all("style")) == 1
    assert "import" not in soup.style.get_text()
    equivalents = {meta.get("http-equiv") for meta in soup.find_all("meta")}
    assert equivalents == {None, "Content-Security-Policy"}
    attributes = ("srcset", "srcdoc", "formaction", "xlink:href")
    for tag in soup.find_all(True):
        assert not [n for n in tag.attrs if n.startswith("on") or n in attributes], tag
        assert not tag.get("src") or tag["src"].startswith("data:image/"), tag
        href = tag.get("href") or ""
        assert not href or not re.match(r"\s*([a-z\s]*script|data|//)", href, re.IGNORECASE), tag
        assert "url(" not in (tag.get("style") or ""), tag


def test_what_is_harmless_stays():
    text = (
        '<table class="dataframe"><thead><tr><th colspan="2">a</th></tr></thead><tbody><tr><td style="color: red;">&lt;b&gt;</td>'
        '</tr></tbody></table><p><a href="https://example.org/x">x</a> <a href="10_x.html#failing-cell">y</a></p>'
    )
    assert clean(text) == text
    formula = '<math display="inline" xmlns="http://www.w3.org/1998/Math/MathML"><mrow><mfrac><mi>a</mi><mi>b</mi></mfrac></mrow></math>'
    assert clean(formula) == formula


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_a_hostile_page_does_nothing_in_a_browser(pages):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser.CHROMIUM, args=browser.CHROMIUM_ARGS
        )
        for name in ("index", "10_x"):
            page, address = chromium.new_page(), (pages / f"{name}.html").as_uri()
            asked, dialogs = [], []

            def dismissed(dialog, dialogs=dialogs):
                dialogs.append(dialog.message)
                dialog.dismiss()

            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("dialog", dismissed)
            page.goto(address)
            title = page.title()
            page.wait_for_timeout(1500)  # for what waits: onerror, refresh
            for index in range(page.locator("summary").count()):
                page.locator("summary").nth(index).click(timeout=20_000)
            inside = page.locator(
                "main a:not([href^=http]):not([href$='.ipynb']):not([href*=figures]):not([href*=tables])"
            )
            for index in range(inside.count()):
                href = inside.nth(index).get_attribute("href")
                if href is None or href.startswith("#"):
                    inside.nth(index).click(timeout=20_000, force=True)
            page.wait_for_timeout(300)
            elsewhere = [url for url in asked if not url.startswith(("data:image/", address))]
            assert not elsewhere and not dialogs, (elsewhere, dialogs)
            assert page.url.split("#")[0] == address and page.title() == title
            assert "pwned" not in title.split("<")[0] and page.locator("h1, h2").first.is_visible()
            assert page.locator("table:visible").count()
            page.close()
        chromium.close()


@pytest.mark.parametrize(
    "path", sorted((LIBRARY / "widgets").glob("*.js")), ids=lambda path: path.name
)
def test_widgets_write_text_and_no_html(path):
    source = path.read_text()
    forbidden = (
        "innerHTML outerHTML insertAdjacentHTML document.write createContextualFragment DOMParser eval( Function( "
        "setHTML javascript: importScripts fetch( XMLHttpRequest WebSocket"
    ).split()
    assert not [word for word in forbidden if word in source]
    for word in re.findall(r"https?://[^\s\"'`]+", source):
        # Names of SVG's vocabulary, never fetched.
        assert word.startswith("http://www.w3.org/"), word


def test_widgets_of_python_show_no_html():
    for path in sorted((LIBRARY / "widgets").glob("*.py")):
        used = {called.split(".")[-1] for _, called, _ in calls(ast.parse(path.read_text()))}
        assert not used & {"HTML", "HTMLMath", "Javascript", "publish_display_data"}, path


def test_error_messages_cannot_steer_a_terminal():
    got = "\x1b]0;owned\x07\x1b[2J\rfake: all is well\ud800"
    text = str(WorkbenchError("what", got=got, where=Path("a\x9bb"), fix="m"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text) and "\\x1b" in text
    text.encode()


# ---- listening


def listening(process: psutil.Process) -> list[tuple[int, str, int]]:
    """(process, address, port) of all that a process and its children listen to."""
    found = []
    for one in [process, *process.children(recursive=True)]:
        try:
            connections = one.net_connections(kind="inet")
        except psutil.NoSuchProcess:  # it has ended since it was listed
            continue
        for connection in connections:
            udp = connection.type == 2 and connection.laddr
            if udp or connection.status == psutil.CONN_LISTEN:
                found.append((one.pid, connection.laddr.ip, connection.laddr.port))
    return found


def lab_command() -> list[str]:
    """The very words of `make lab`, with this interpreter."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    # In `make test` this make is not its child.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = [make, "-n", "-o", ".venv/installed", "RUN=PYTHON", "lab"]
    said = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    lines = said.stdout.replace("\\\n", " ").splitlines()
    words = shlex.split(next(line for line in lines if line.startswith("PYTHON")))
    assert words[:3] == ["PYTHON", "-m", "jupyterlab"], said
    return [sys.executable, *words[1:]]


def test_the_lab_listens_to_this_machine_and_asks_for_its_token(tmp_path):
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    env |= {**own, "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [*lab_command(), "--no-browser", "--port=0", f"--ServerApp.root_dir={tmp_path}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline, info = time.monotonic() + 90, {}
        while not info:
            assert process.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            for path in (tmp_path / "RUNTIME").glob("jpserver-*.json"):
                info = json.loads(path.read_text() or "{}")
            time.sleep(0.1)
        url, token = f"http://127.0.0.1:{info['port']}", info["token"]
        assert len(token) >= 32

        def ask(path: str, method: str = "GET", **headers) -> int:
            request = urllib.request.Request(f"{url}/{path}", method=method, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:
                    return json.loads(reply.read() or "null") if headers else reply.status
            except urllib.error.HTTPError as error:
                return error.code

        while isinstance(ask("api/status", Authorization=f"token {token}"), int):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        kernel = ask("api/kernels", "POST", Authorization=f"token {token}")["id"]
        doors = f"status contents kernels kernels/{kernel}/channels sessions terminals".split()
        for path in (f"api/{door}" for door in doors):
            assert ask(path) in (403, 401), path
            assert ask(path, Authorization="token " + "0" * 48) in (403, 401), path
        while len({pid for pid, *_ in listening(psutil.Process(process.pid))}) < 2:
            assert time.monotonic() < deadline, "the kernel listens too"
            time.sleep(0.1)
        found = listening(psutil.Process(process.pid))
        assert {address for _, address, _ in found} <= set(LOOPBACK), found
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.wait()


def test_a_kernel_of_the_pipeline_needs_its_key():
    """A message that is not signed with its key a kernel of Jupyter's does not answer."""
    from papermill.engines import NotebookExecutionManager

    from dfkd_lib.pipeline.execute import Client

    async def look() -> None:
        client = Client(NotebookExecutionManager(nbformat.v4.new_notebook()))
        manager = client.create_kernel_manager()
        await manager.start_kernel()
        try:
            channel = manager.client()
            channel.start_channels()
            await channel.wait_for_ready(timeout=60)
            found = listening(psutil.Process(manager.provisioner.process.pid))
            assert found and {address for _, address, _ in found} <= set(LOOPBACK), found
            said = manager.get_connection_info()
            assert len(said["key"]) >= 32 and said["signature_scheme"] == "hmac-sha256"
            assert said["ip"] in LOOPBACK
            channel.stop_channels()
        finally:
            await manager.shutdown_kernel(now=True)

    asyncio.run(asyncio.wait_for(look(), 120))
