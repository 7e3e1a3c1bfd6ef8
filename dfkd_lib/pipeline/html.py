"""Executed notebooks as pages that need neither network nor script, and what all pages are made of."""

import base64
import csv
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import jinja2
import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert as tex_to_mathml
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from papermill.execute import ERROR_MARKER_TAG

from dfkd_lib.core import WorkbenchError, provenance
from dfkd_lib.core.files import replacing
from dfkd_lib.pipeline.clean import clean, clean_output
from dfkd_lib.pipeline.parameters import OWN, parse_cell
from dfkd_lib.reporting.notebooks import headlines_of
from dfkd_lib.reporting.results import commit_text, is_file_name, value_text

TEMPLATES = Path(__file__).parent / "templates"
# A table cell that reads as numbers, also with signs, percent or an interval, or as nothing.
NUMBERS = re.compile(r"(?:[-–—−+±%.,→()\[\]\s\d]|n = \d|(?<=\d)e[-+]?\d+|nan|to)*")
LARGEST_SVG = 3_000_000  # bytes; a larger figure is linked but not embedded
LARGER = 1.6  # times its own size that a figure may be drawn at, so that its letters stay letters
PARAMETERS, INJECTED = "parameters", "injected-parameters"  # tags of papermill
KINDS = {"figures": "Figure", "tables": "Table"}


class MathRenderer(IPythonRenderer):
    """Markdown whose TeX becomes MathML, which browsers draw themselves, and whose headings are noted."""

    def __init__(self, headings: list[tuple[int, str, str]] | None = None, **options):
        super().__init__(**options)
        self.headings = [] if headings is None else headings

    def heading(self, text: str, level: int, **attributes) -> str:
        anchor = f"s{len(self.headings) + 1}"
        plain = BeautifulSoup(text, "html.parser").get_text()
        self.headings.append((level, anchor, plain))
        return f'<h{level} id="{anchor}">{text}</h{level}>'

    def _math(self, tex: str, display: str) -> str:
        try:
            return tex_to_mathml(tex, display=display)
        except Exception:  # the converter has no error class of its own; its TeX is shown as it is
            return f"<code>{self.escape_html(tex)}</code>"

    def block_math(self, body: str) -> str:
        return self._math(body, "block")

    def inline_math(self, body: str) -> str:
        return self._math(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return self._math(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


class CellExporter(HTMLExporter):
    """nbconvert's HTML exporter for the cells alone, without scripts; Markdown may embed no other file."""

    def __init__(self, **options):
        self.headings: list[tuple[int, str, str]] = []
        super().__init__(
            template_name="report", extra_template_basedirs=[str(TEMPLATES)], **options
        )

    def markdown(self, source: str, attachments: dict | None = None) -> str:
        """Markdown as clean HTML."""
        renderer = MathRenderer(self.headings, escape=False, attachments=attachments or {}, path="")
        return clean(MarkdownWithMath(renderer=renderer).render(source))

    @jinja2.pass_context
    def markdown2html(self, context, source):
        return self.markdown(source, context.get("cell", {}).get("attachments", {}))


@cache
def templates() -> jinja2.Environment:
    """The pages' templates; all text from data is escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"duration": duration, "memory": memory, "value": value_text}
    made.filters["commit"] = commit_text
    made.filters["aligned"] = lambda text: Markup(align_numbers(str(text)))
    made.globals["css"] = Markup((TEMPLATES / "style.css").read_text())
    made.globals["parts"] = made.get_template("parts.html.j2").module
    return made


def write_page(path: Path, template: str, fallbacks: dict[str, str], **values) -> Path:
    """Render a template into a file; returns the path.

    Args:
        fallbacks: {notebook: what was asked for and is not shown}, in red at the top.
    """
    text = templates().get_template(template).render(fallbacks=fallbacks, **values)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def fallbacks_of(results: Mapping[str, dict]) -> dict[str, str]:
    """{notebook: what was asked for and is not shown} of notebooks' results."""
    found = {name: result.get("metrics", {}).get("fallback") for name, result in results.items()}
    return {name: str(text) for name, text in found.items() if text}


def mark_failure(notebook: Path, error: str, index: int) -> None:
    """Point from the top of a saved notebook to the cell that stopped it, and show `error` there if nothing else does.

    Args:
        error: plain text. index: the cell that ran last, as counted before papermill put in its own two marks.
    """
    node = nbformat.read(notebook, as_version=4)
    node.cells = [cell for cell in node.cells if not tagged(cell, ERROR_MARKER_TAG)]
    index = min(index, len(node.cells) - 1)
    cell = node.cells[index]
    if cell.cell_type == "code" and not raised(cell):
        output = nbformat.v4.new_output("error", ename="Error", evalue=error, traceback=[error])
        cell.outputs.append(output)
    for place, text in (
        (index, 'id="failing-cell" class="error">The run stopped at the cell below.'),
        (0, 'class="error">This run failed: <a href="#failing-cell">see the failing cell</a>.'),
    ):
        mark = {"tags": [ERROR_MARKER_TAG]}
        node.cells.insert(place, nbformat.v4.new_markdown_cell(f"<p {text}</p>", metadata=mark))
    nbformat.write(node, notebook)


def tagged(cell: nbformat.NotebookNode, *tags: str) -> bool:
    return not {*tags}.isdisjoint(cell.metadata.get("tags", []))


def raised(cell: nbformat.NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.outputs)


def write_notebook_page(notebook: Path, page: Path) -> None:
    """Render an executed notebook as one self-contained HTML file."""
    node = nbformat.read(notebook, as_version=4)
    name, saved = notebook.stem, read_metrics(notebook.parent, notebook.stem)
    exporter = CellExporter()
    title, lead, failure = take_head(node, name)
    parameters = take_parameters(node, name)
    own = {key: parameters.pop(key)[0] for key in OWN if key in parameters}
    preset = str(own.get("preset") or "")
    changed, rest = settings_table(parameters, saved.get("settings", {}))
    place_outputs(node, notebook.parent)
    lead, failure = exporter.markdown(lead), exporter.markdown(failure)
    resources = {"metadata": {"name": name, "path": str(notebook.parent)}}
    body, _ = exporter.from_notebook_node(node, resources)
    result = {**saved, "parameters": {key: entry[0] for key, entry in parameters.items()}}
    settings = [(2, "settings", "Settings")] if preset else []
    write_page(
        page,
        "notebook.html.j2",
        fallbacks_of({name: saved}),
        title=title,
        name=name,
        failure=Markup(failure),
        lead=Markup(lead),
        headlines=[row for h in headlines_of(node.metadata) if (row := h.row(result))],
        preset=preset,
        changed=changed,
        rest=rest,
        body=Markup(body),
        contents=settings + [row for row in exporter.headings if row[0] in (2, 3)],
        command=command(name, parameters, own) if preset else None,
        provenance={"git": provenance.code()},
    )


def take_head(node: nbformat.NotebookNode, name: str) -> tuple[str, str, str]:
    """(title, first paragraph, note of failure) of a notebook, as Markdown, taken out of its cells."""
    failure = ""
    if node.cells and tagged(node.cells[0], ERROR_MARKER_TAG):
        failure = node.cells.pop(0).source
    first = node.cells[0] if node.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        return name, "", failure
    heading, _, rest = first.source.partition("\n")
    lead, _, first.source = rest.strip().partition("\n\n")
    return heading.removeprefix("# "), lead, failure


def take_parameters(node: nbformat.NotebookNode, name: str) -> dict[str, tuple]:
    """{name: (value, default, help)} of a notebook's parameters; their cells are taken out."""
    declared, values = {}, node.metadata.get("papermill", {}).get("parameters", {})
    for cell in [cell for cell in node.cells if cell.cell_type == "code"]:
        if tagged(cell, PARAMETERS):
            with suppress(WorkbenchError):  # a cell that cannot be read stays on the page
                declared = parse_cell(cell.source, name)
        readable = tagged(cell, INJECTED) or tagged(cell, PARAMETERS) and declared
        if readable and not raised(cell):
            node.cells.remove(cell)
    return {key: (values.get(key, p.default), p.default, p.help) for key, p in declared.items()}


def settings_table(parameters: dict, settings: dict) -> tuple[list[tuple], list[tuple]]:
    """Rows (setting, value, the preset's, help) of what differs from the preset, and (setting, value, help) of the rest.

    Args:
        parameters: {name: (value, default, help)} of the notebook; one that stands for a setting is not repeated.
        settings: {dotted name: (value, the preset's, help, second name)} of its configuration; {} if it has none.
    """
    known = {"overrides"}
    for name, entry in settings.items():
        known |= {name, name.replace(".", "_"), *name.split("."), *map(str, entry[3:])}
    shown = {name: entry for name, entry in parameters.items() if name not in known} | settings
    rows = [(name, *map(value_text, entry[:3])) for name, entry in shown.items()]
    changed = [row for row in rows if row[1] != row[2]]
    return changed, [(row[0], row[1], row[3]) for row in rows if row[1] == row[2]]


def command(name: str, parameters: dict, own: dict) -> str:
    """The command that makes the page of a notebook again."""
    words = ["dfkd", "run", "--profile", str(own["preset"]), "--only", name[:2]]
    for parameter, (value, default, _) in parameters.items():
        words += ["--set", f"{name[:2]}.{parameter}={value}"] if value != default else []
    for key in ("out_dir", "artifacts_dir"):
        words += [OWN[key], str(own[key])] if key in own else []
    return shlex.join(words)


def place_outputs(node: nbformat.NotebookNode, folder: Path) -> None:
    """Leave in all outputs only what can do no harm; give the report's figures and tables numbers and captions."""
    count = {"figures": 0, "tables": 0}
    for cell in node.cells:
        for output in list(cell.get("outputs", [])):
            note = output.get("metadata", {}).get("dfkd")
            kind = note.get("kind") if isinstance(note, dict) else None
            clean_output(output)
            data = output.get("data", {})
            if "<table" in data.get("text/html", ""):
                data["text/html"] = align_numbers(data["text/html"])
            if kind == "caption":
                cell.outputs.remove(output)
            elif kind in count and (entry := read_entry(note)):
                count[kind] += 1
                entry["label"] = f"{KINDS[kind]} {count[kind]}."
                if kind == "figures":
                    entry = place_figure(folder, entry) or entry
                    if not entry["source"] and "image/png" in data:
                        entry["source"] = f"data:image/png;base64,{data['image/png']}"
                entry["html"] = Markup(data.get("text/html", ""))
                output.data = {"text/html": templates().globals["parts"].figure(entry)}


def read_entry(note: object) -> dict | None:
    """What a report noted of a figure or table, all text; None if its name is no file name."""
    if not isinstance(note, dict) or not is_file_name(note.get("name")):
        return None
    keys = note.get("keys")
    texts = {part: str(note.get(part) or "") for part in ("caption", "paper")}
    known = {"name": note["name"], "keys": list(map(str, keys)) if isinstance(keys, list) else []}
    return {**known, **texts, "source": None, "width": None, "html": "", "links": []}


def place_figure(folder: Path, entry: dict) -> dict | None:
    """A figure's entry with its picture as a data address, its width and its files; None if there is none to show."""
    links = files_of(folder, "figures", entry["name"], ("svg", "png", "pdf"))
    for kind, mime in (("svg", "image/svg+xml"), ("png", "image/png")):
        path = folder / "figures" / f"{entry['name']}.{kind}"
        if path.exists() and path.stat().st_size <= LARGEST_SVG:
            data = path.read_bytes()
            source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
            return {**entry, "source": source, "links": links, "width": svg_width(data)}
    return None


def svg_width(svg: bytes) -> int | None:
    """The most pixels that an SVG is to be wide, by its viewBox (in points as matplotlib writes it)."""
    head = svg[:4000].decode(errors="replace")
    try:
        return round(LARGER * 4 / 3 * float(head.partition('viewBox="')[2].split()[2]))
    except (ValueError, IndexError):
        return None


def place_table(folder: Path, entry: dict) -> dict | None:
    """A table's entry with its rows, read from its CSV file; None if there is none."""
    path = folder / "tables" / f"{entry['name']}.csv"
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    html = templates().globals["parts"].rows(head, [map(shorten, row) for row in rows])
    links = files_of(folder, "tables", entry["name"], ("csv", "tex"))
    return {**entry, "html": html, "links": links}


def files_of(folder: Path, part: str, name: str, kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """(kind, path from the page) of the files of a figure or table that exist."""
    files = {kind.upper(): f"{part}/{name}.{kind}" for kind in kinds}
    return [(kind, file) for kind, file in files.items() if (folder / file).exists()]


def entries(folder: Path, saved: dict, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """(kind, entry) of every figure and table that a report saved, numbered as on its page, with what it shows."""
    for kind, place in (("figures", place_figure), ("tables", place_table)):
        for number, note in enumerate(saved.get(kind, []), 1):
            entry = read_entry(note)
            if entry and (placed := place(folder, entry)):
                yield kind, {**placed, "label": f"{KINDS[kind]} {prefix}{number}."}


def read_metrics(out: Path, name: str) -> dict:
    """What the notebook's report saved, or {}."""
    try:
        saved = json.loads((out / "metrics" / f"{name}.json").read_text())
        return saved if isinstance(saved, dict) else {}
    except (OSError, ValueError):
        return {}


def align_numbers(text: str) -> str:
    """HTML whose tables have class "number" on every column that holds numbers only."""
    soup = BeautifulSoup(text, "html.parser")
    for table in soup.find_all("table"):
        rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
        head = table.find("thead")
        body = rows[len(head.find_all("tr")) :] if head else rows
        for i in range(min(map(len, body), default=0)):
            texts = [row[i].get_text(strip=True) for row in body]
            if any(texts) and all(map(NUMBERS.fullmatch, texts)):
                for row in (row for row in rows if i < len(row)):
                    row[i]["class"] = [*row[i].get("class", []), "number"]
    return str(soup)


def shorten(text: str) -> str:
    """A long decimal to four digits; anything else as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:.4g}" if "." in text and len(text) > 7 and abs(number) < 1e4 else text


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: `42 s`, `3 min 05 s`, `1 h 12 min`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def memory(megabytes: float | None) -> str:
    """Megabytes (10⁶) as a person reads them."""
    if not megabytes:
        return ""
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
