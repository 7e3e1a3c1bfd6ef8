"""A result belongs to its code: what changes a fingerprint, what does not, and what is made anew by it."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from cells import run_cell

from dfkd_lib.cli import main
from dfkd_lib.core import (
    Registry,
    Store,
    WorkbenchError,
    explain,
    fingerprint,
    remember,
    source,
)
from dfkd_lib.core.code import stage_fingerprint
from dfkd_lib.core.explain import differences
from dfkd_lib.detection import SceneGAN
from dfkd_lib.distill import Study
from dfkd_lib.losses import kd_loss
from dfkd_lib.synthesis import CGAN

ROOT = Path(__file__).resolve().parents[2]
STEP = """
    import torch.nn.functional as F
    from dfkd_lib import losses

    temperature = 4.0

    def step(student, batch, teacher):
        kd = losses.kd_loss(student(batch.images), teacher.logits, temperature)
        return {"loss": kd, "ce": F.cross_entropy(student(batch.images), batch.labels)}
"""


def cell(text: str, names: dict | None = None) -> dict:
    return run_cell(textwrap.dedent(text), {"__name__": "__main__"} if names is None else names)


def step_of(text: str) -> str:
    return fingerprint(cell(text)["step"]).digest


@pytest.mark.parametrize(
    "old, new",
    [
        ("        kd = ", "        # the distillation\n        kd = "),
        ("teacher):\n", 'teacher):\n        """What it does."""\n'),
        ("student, batch, teacher)", "student: object, batch: dict, teacher) -> dict"),
        (
            "teacher.logits, temperature)",
            "\n            teacher.logits,\n            temperature,\n        )",
        ),
        ("losses.kd_loss", "kd_loss"),
        ("temperature = 4.0", "temperature = 4.0\n    epochs = 3"),
        ("        kd = ", "        print('here')\n        kd = "),
    ],
    ids=["comment", "docstring", "annotation", "format", "import", "another name", "print"],
)
def test_what_changes_no_result_changes_no_fingerprint(old, new):
    changed = STEP.replace(old, new).replace(
        "import losses", "import losses; from dfkd_lib.losses import kd_loss"
    )
    assert changed != STEP and step_of(changed) == step_of(STEP)


@pytest.mark.parametrize(
    "old, new",
    [
        ("temperature = 4.0", "temperature = 3.0"),
        ("student(batch.images), teacher", "2 * student(batch.images), teacher"),
        ("losses.kd_loss", "losses.hard_distillation_loss"),
        ("F.cross_entropy", "F.nll_loss"),
        ('"ce"', '"CE"'),
    ],
)
def test_what_changes_a_result_changes_the_fingerprint(old, new):
    assert old in STEP and step_of(STEP.replace(old, new)) != step_of(STEP)


def test_a_step_that_is_edited_is_made_anew_and_undone_is_found(tmp_path, capsys):
    store, made = Store(tmp_path), []

    def student(step):
        def make(work):
            made.append(len(step.__name__))

        return store.get_or_make("student", {"model": "vit"}, make)

    names = cell(STEP)
    first = student(names["step"])
    assert student(cell(STEP)["step"]).key == first.key and len(made) == 1
    cell("temperature = 2.0", names)
    second = student(names["step"])
    assert second.key != first.key and len(made) == 2
    line = capsys.readouterr().out.strip()
    assert line == f"{second.key}: made anew: step: temperature 4.0 → 2.0, since {first.key}"
    cell("temperature = 4.0", names)
    assert student(names["step"]).key == first.key and len(made) == 2


def test_a_function_below_its_import_is_known_though_a_kernel_compiles_each_statement_alone():
    text = "import math\n\ndef step(x):\n    return math.sqrt(x)\n"
    name, names = remember("<cell with an import>", text), {"__name__": "__main__"}
    for node in ast.parse(text).body:
        exec(compile(ast.Module([node], []), name, "exec"), names)
    assert fingerprint(names["step"]).digest == step_of(text)


def test_a_value_in_a_closure_counts():
    def with_temperature(temperature):
        def step(logits, others):
            return kd_loss(logits, others, temperature)

        return step

    one, other = (fingerprint(with_temperature(value)) for value in (4.0, 3.0))
    assert one == fingerprint(with_temperature(4.0)) != other
    (line,) = differences(one.table, other.table)
    assert line.endswith("step: temperature 4.0 → 3.0")


def double(x):
    return 2 * x


class Scale:
    """A callable object with a method and a state."""

    limit = 10

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return self.times(x)

    def times(self, x):
        return double(x) * self.by


@pytest.mark.parametrize(
    "thing, same, other",
    [
        (lambda x: 2 * x, lambda y: 2 * y, lambda x: 3 * x),
        (partial(double, 1), partial(double, 1), partial(double, 2)),
        (Scale(2).times, Scale(2).times, Scale(3).times),
        (Scale(2), Scale(2), Scale(3)),
        (torch.nn.Linear(2, 2).eval(), None, torch.nn.Linear(2, 2).eval()),
        (lambda x: x + torch.ones(2), None, lambda x: x + torch.zeros(2)),
    ],
    ids=["lambda", "partial", "bound method", "callable object", "model", "tensors"],
)
def test_every_kind_of_function_has_a_fingerprint(thing, same, other):
    found = fingerprint(thing).digest
    assert found == fingerprint(thing).digest != fingerprint(other).digest
    if isinstance(thing, partial | Scale) or hasattr(thing, "__self__"):
        assert found == fingerprint(same).digest


class Softened(torch.nn.Module):
    """A loss with a temperature that its `repr` does not show."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, x):
        return x / self.temperature


@pytest.mark.parametrize(
    "one, other",
    [
        (Softened(4.0), Softened(2.0)),
        (torch.nn.Sequential(Softened(4.0)), torch.nn.Sequential(Softened(2.0))),
        (
            torch.nn.CrossEntropyLoss(label_smoothing=0.1),
            torch.nn.CrossEntropyLoss(label_smoothing=0.5),
        ),
    ],
    ids=["own", "inside another", "torch's"],
)
def test_a_loss_that_is_a_module_counts_with_what_it_holds(one, other):
    def step_with(criterion):
        names = {"__name__": "__main__", "criterion": criterion}
        return cell("def step(student, batch): return criterion(student(batch))", names)["step"]

    found = fingerprint(step_with(one)).digest
    assert found == fingerprint(step_with(one)).digest != fingerprint(step_with(other)).digest


def weighed(loss, x):
    return loss * x


@pytest.mark.parametrize(
    "step",
    [
        lambda value: partial(weighed, value),
        lambda value: Scale(value).times,
        lambda value: Scale(value),
        lambda value: lambda x: value * x,
        lambda value: SceneGAN().with_step(lambda nets, batch, lam: value),
        lambda value: CGAN().with_step(partial(weighed, value)),
    ],
    ids="partial method object closure scenes images".split(),
)
def test_whatever_a_stage_is_given_as_its_step_counts(step):
    """As `store.get_or_make` finds it: in the closure of what makes the stage."""

    def key(given):
        def make(work):
            return given(work)

        return stage_fingerprint(make).digest

    assert key(step(2)) == key(step(2)) != key(step(3))


def test_others_names_do_not_say_what_is_an_error_or_a_message():
    text = """
        class PixelError:
            def __init__(self, scale): self.scale = scale
            def __call__(self, x): return self.scale * x

        def warn(losses): losses.append(1)

        def step(x, losses):
            warn(losses)
            if x is None:
                raise ValueError("no x")
            return PixelError(2)(x)
    """
    for old, new in (
        ("return self.scale * x", "return self.scale + x"),
        ("PixelError(2)", "PixelError(3)"),
        ("append(1)", "append(2)"),
        ("warn(losses)\n", "pass\n"),
    ):
        assert text.count(old) == 1 and step_of(text) != step_of(text.replace(old, new)), old
    assert step_of(text) == step_of(text.replace("no x", "none"))


def test_lambdas_are_told_apart_in_one_line_and_over_several():
    plus, minus = (lambda x: x + 1), (lambda x: x - 1)
    assert fingerprint(plus).digest != fingerprint(minus).digest

    def made(digits):
        return lambda value: (
            round(
                value,
                digits,
            ).real
        )

    assert fingerprint(made(1)).digest != fingerprint(made(2)).digest


def test_a_class_counts_with_its_bases_and_methods():
    text = """
        class Base:
            def scale(self): return 2

        class Model(Base):
            layers: int = 3
            def forward(self, x): return self.scale() * x

        def step(x): return Model().forward(x)
    """
    assert step_of(text) == step_of(text.replace("layers: int", "layers: float"))
    for old, new in (("return 2", "return 3"), ("= 3", "= 4"), ("* x", "+ x"), ("(Base)", "")):
        assert step_of(text) != step_of(text.replace(old, new))


def test_what_cannot_be_compared_is_refused_with_a_fix(tmp_path):
    names = cell("def step(x): return file.read()", None)
    with open(tmp_path / "f", "w") as file:
        names["file"] = (line for line in file)
        with pytest.raises(WorkbenchError, match="cannot be part of a key") as caught:
            fingerprint(names["step"])
    assert "step: file" in str(caught.value) and "as an argument" in str(caught.value)


def test_a_table_of_models_is_not_followed_but_for_the_entry_in_use():
    text = "def make(work): return {'model': table['a']()}"
    table = Registry(a=lambda: 1, b=lambda: 2)

    def key(entry):
        names = {"__name__": "__main__", "table": Registry(table)}
        return fingerprint(cell(text, names)["make"], table[entry]).digest

    before = key("a")
    table["b"] = lambda: 3
    assert key("a") == before != key("b")
    table["a"] = lambda: 4
    assert key("a") != before


def loaded(path: Path, text: str):
    path.write_text(textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_a_function_that_moves_stays_the_same_and_one_that_changes_on_disk_is_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(source, "RECHECK", 0.0)
    text = "WEIGHT = 2.0\n\ndef loss(x):\n    return WEIGHT * x\n"
    one = loaded(tmp_path / "first_place.py", text)
    other = loaded(tmp_path / "second_place.py", "import math\n\n\ndef more(): pass\n\n" + text)
    before = fingerprint(one.loss)
    assert before == fingerprint(other.loss)
    (tmp_path / "first_place.py").write_text("# a comment above\n" + text)
    assert fingerprint(one.loss) == before
    (tmp_path / "first_place.py").write_text(text.replace("* x", "+ x"))
    with pytest.raises(WorkbenchError, match="changed since it was loaded") as caught:
        fingerprint(one.loss)
    assert "restart the kernel" in str(caught.value)


def test_a_constant_of_the_library_counts_each_time_it_is_asked(monkeypatch):
    from dfkd_lib.training import loop

    before = fingerprint(loop.fit)
    monkeypatch.setattr(loop, "CHECK_EVERY", 21)
    assert differences(before.table, fingerprint(loop.fit).table) == [
        "_Run.epoch: CHECK_EVERY 20 → 21"
    ]
    monkeypatch.undo()
    assert fingerprint(loop.fit) == before
    monkeypatch.setattr(loop._Run, "_rows_per_step", lambda self: 1, raising=False)
    monkeypatch.setattr(loop, "learning_rate", lambda config, epoch: 1.0)
    assert fingerprint(loop.fit) != before


def test_what_changes_in_place_counts_each_time_it_is_asked(monkeypatch):
    from dfkd_lib.metrics import coco

    before, sizes = fingerprint(coco.coco_evaluation), dict(coco.SIZES)
    monkeypatch.setitem(coco.SIZES, "small", (0, 33.0**2))
    changed = fingerprint(coco.coco_evaluation)
    monkeypatch.setattr(coco, "SIZES", sizes)
    assert changed != before == fingerprint(coco.coco_evaluation)
    sizes["tiny"] = sizes.pop("small")
    assert fingerprint(coco.coco_evaluation) not in (before, changed)


def test_what_is_read_each_time_counts_also_behind_what_holds():
    """A study's methods hold; what they call reaches the losses through their table, which may change in place."""
    assert {"train", "kd_step", "kd_loss"} <= set(fingerprint(Study).table)


def test_a_wrapper_of_ones_own_counts_and_that_of_a_library_does_not():
    text = """
        import functools, torch

        def doubled(f):
            @functools.wraps(f)
            def inner(x): return 2 * f(x)
            return inner

        def step(x): return x + 1

        step = doubled(step)
    """
    found = step_of(text)
    assert found != step_of(text.replace("2 * f", "3 * f"))
    assert found != step_of(text.replace("x + 1", "x + 2"))
    bare = text.replace("step = doubled(step)", "step = torch.no_grad()(step)")
    assert step_of(bare) == step_of(bare.replace("step = torch.no_grad()(step)", ""))


@pytest.mark.parametrize(
    "text, same",
    [
        ("[x for x in x]", "[x for x in (1, 2)]"),
        ("(lambda scale: scale)(1) * scale", "(lambda scale: scale)(1)"),
    ],
)
def test_a_name_is_outer_where_its_scope_says_so(text, same):
    """A name may be bound inside a comprehension or a lambda and come from outside beside it."""
    source = f"""
        x, scale = [1], 2
        def step(): return {text}
    """
    changed = source.replace("[1], 2", "[5], 6")
    assert step_of(source) != step_of(changed)
    assert step_of(source.replace(text, same)) == step_of(changed.replace(text, same))


def test_explain_says_what_made_an_artifact_and_what_differs(tmp_path, capsys):
    store = Store(tmp_path)

    def student(temperature, epochs):
        names = cell(STEP.replace("4.0", str(temperature)))
        teacher = store.get_or_make("teacher", {"seed": 0}, double_or_nothing)
        return store.get_or_make(
            "student", {"config": {"epochs": epochs}}, _make(names["step"]), [teacher]
        )

    one, other = student(4.0, 1), student(3.0, 2)
    capsys.readouterr()
    for keys, code, lines in (
        (
            [one.key[:12]],
            0,
            [
                f"{one.key}\n",
                "config.epochs = 1",
                "step: temperature  = 4.0",
                one.parents[0],
                "commit",
                "torch ",
            ],
        ),
        ([one.key, other.key], 0, ["  config.epochs: 1 → 2\n", "  step: temperature 4.0 → 3.0"]),
        (["studnt-0123"], 2, ["did you mean student-"]),
        (["student"], 2, ["several artifacts"]),
    ):
        assert main(["explain", *keys, "--artifacts", str(tmp_path)]) == code
        printed = capsys.readouterr()
        assert all(line in printed.out + printed.err for line in lines), keys


def double_or_nothing(work):
    return {"value": double(1)}


def _make(step):
    def make(work):
        return {"step": step.__name__}

    return make


def test_other_versions_are_reported_once_and_change_no_key(tmp_path, capsys, monkeypatch):
    store = Store(tmp_path)
    made = store.get_or_make("teacher", {}, double_or_nothing)
    monkeypatch.setattr(explain, "versions", lambda libraries: {"torch": "99.0"})
    monkeypatch.setattr(explain, "_reported", set())
    capsys.readouterr()
    for _ in range(2):
        assert store.get_or_make("teacher", {}, double_or_nothing).cached
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and made.key in printed[0] and "→ 99.0" in printed[0]


LIBRARY_RUN = """
    import sys, torch
    from dfkd_lib import distill, synthesis, training
    from dfkd_lib.core import Store
    from dfkd_lib.datasets import ImageSet

    def images(split, count):
        generator = torch.Generator().manual_seed(count)
        pixels = torch.randint(0, 255, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"), split, split)

    store, train, test = Store(sys.argv[1]), images("x/train", 16), images("x/test", 8)
    small = {"width": 16, "depth": 1, "heads": 2}
    config = training.TrainConfig(epochs=1, batch_size=8, lr=1e-3)
    teacher = training.train_teacher(store, "vit_mnist_small", train, test, config, overrides=small)
    probes = synthesis.class_probes(store, teacher, train)
    given = synthesis.Given(teacher, train.classes, train.shape, probes, train)
    gan = synthesis.CGAN(epochs=1, batch_size=8, width=8, d_width=4)
    drawn, made = synthesis.make_images(store, gan, given, 8)
    student = distill.StudentConfig(model="vit_mnist_small", epochs=1, batch_size=8)
    kept = distill.train(
        store, student, distill.KDWeights(), drawn, test, teacher, parents=[made], overrides=small
    )
    for artifact in (teacher, probes, gan.train(store, given), made, kept):
        print("key", artifact.stage, artifact.key, artifact.cached)
"""


def run_library(folder: Path, store: Path, seed: str) -> tuple[dict, str]:
    command = [sys.executable, "-c", textwrap.dedent(LIBRARY_RUN), str(store)]
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("key ")]
    return {stage: (key, found == "True") for stage, key, found in rows}, done.stdout


def test_a_changed_loss_makes_its_students_anew_and_nothing_else(tmp_path):
    """One meaningful character of `kd_loss`, in a copy of the library: teacher, probes, GAN and images are found."""
    shutil.copytree(ROOT / "dfkd_lib", tmp_path / "dfkd_lib")
    source = tmp_path / "dfkd_lib" / "losses" / "classification.py"
    text = source.read_text()
    first, _ = run_library(tmp_path, tmp_path / "store", "1")
    source.write_text("# a comment\n" + text)
    assert "temperature**2" in text
    again, _ = run_library(tmp_path, tmp_path / "store", "2")
    assert {stage: key for stage, (key, _) in again.items()} == {
        s: k for s, (k, _) in first.items()
    }
    assert all(found for _, found in again.values())
    source.write_text(text.replace("temperature**2", "temperature**3"))
    changed, printed = run_library(tmp_path, tmp_path / "store", "3")
    (student,) = (stage for stage, (_, found) in changed.items() if not found)
    assert student == "student_synthetic"
    line = f"{changed[student][0]}: made anew: kd_loss changed, since {first[student][0]}"
    assert line in printed.splitlines()
