"""Executed notebooks as pages that need neither network nor script, and what all pages are made of."""

import base64
import csv
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

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
from dfkd_lib.reporting.results import commit_text, value_text

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # of a figure or table: never a path
NUMBERS = re.compile(r"(?:[-–—−+±%.,→()\[\]\s\d]|n = \d|(?<=\d)e[-+]?\d+|nan|to)*")
LARGEST_SVG = 3_000_000  # bytes; a larger figure is linked but not embedded
LARGER = 1.6  # times its own size that a figure may be drawn at, so that its letters stay letters
PARAMETERS, INJECTED = "parameters", "injected-parameters"  # tags of papermill


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

    def markdown2html(self, context, source):
        return self.markdown(source, context.get("cell", {}).get("attachments", {}))

    def default_filters(self):
        yield from super().default_filters()
        convert = jinja2.pass_context(lambda context, text: self.markdown2html(context, text))
        yield "markdown2html", convert


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
    made.filters["aligned"] = lambda text: Markup(align_numbers(str(text)))
    made.globals["css"] = Markup((TEMPLATES / "style.css").read_text())
    made.globals["parts"] = made.get_template("parts.html.j2").module
    return made


def write_page(path: Path, template: str, **words) -> Path:
    """Render a template into a file; returns the path."""
    text = templates().get_template(template).render(**words)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def mark_failure(notebook: Path, error: str, index: int) -> None:
    """Point from the top of a saved notebook to the cell that stopped it, and show `error` there if nothing else does.

    Args:
        error: plain text. index: the cell that ran last, as counted before papermill put in its own two marks.
    """
    node = nbformat.read(notebook, as_version=4)
    node.cells = [
        cell for cell in node.cells if ERROR_MARKER_TAG not in cell.metadata.get("tags", [])
    ]
    index = min(index, len(node.cells) - 1)
    cell = node.cells[index]
    if cell.cell_type == "code" and not any(
        output.output_type == "error" for output in cell.outputs
    ):
        cell.outputs.append(
            nbformat.v4.new_output("error", ename="Error", evalue=error, traceback=[error])
        )
    for place, text in (
        (index, '<p id="failing-cell" class="error">The run stopped at the cell below.</p>'),
        (
            0,
            '<p class="error">This run failed: <a href="#failing-cell">see the failing cell</a>.</p>',
        ),
    ):
        node.cells.insert(
            place, nbformat.v4.new_markdown_cell(text, metadata={"tags": [ERROR_MARKER_TAG]})
        )
    nbformat.write(node, notebook)


def write_notebook_page(notebook: Path, page: Path) -> None:
    """Render an executed notebook as one self-contained HTML file."""
    node = nbformat.read(notebook, as_version=4)
    saved = read_metrics(notebook.parent, notebook.stem)
    exporter = CellExporter()
    title, lead, failure = take_head(node, notebook.stem)
    preset, parameters, own = take_parameters(node, notebook.stem)
    changed, rest = settings_table(parameters, saved.get("settings", {}))
    place_outputs(node, notebook.parent)
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    lead, failure = exporter.markdown(lead), exporter.markdown(failure)
    body, _ = exporter.from_notebook_node(node, resources)
    result = {**saved, "parameters": {name: entry[0] for name, entry in parameters.items()}}
    settings = [(2, "settings", "Settings")] if preset else []
    write_page(
        page,
        "notebook.html.j2",
        title=title,
        name=notebook.stem,
        failure=Markup(failure),
        lead=Markup(lead),
        headlines=[row for h in headlines_of(node.metadata) if (row := h.row(result))],
        preset=preset,
        changed=changed,
        rest=rest,
        body=Markup(body),
        contents=settings + [row for row in exporter.headings if row[0] in (2, 3)],
        command=command(notebook.stem, preset, parameters, own) if preset else None,
        provenance=[("code", commit_text(provenance.code()))],
    )


def take_head(node: nbformat.NotebookNode, name: str) -> tuple[str, str, str]:
    """(title, first paragraph, note of failure) of a notebook, as Markdown, taken out of its cells."""
    failure = ""
    if node.cells and ERROR_MARKER_TAG in node.cells[0].metadata.get("tags", []):
        failure = node.cells.pop(0).source
    if not node.cells or node.cells[0].cell_type != "markdown":
        return name, "", failure
    heading, _, rest = node.cells[0].source.partition("\n")
    if not heading.startswith("# "):
        return name, "", failure
    lead, _, node.cells[0].source = rest.strip().partition("\n\n")
    return heading.removeprefix("# "), lead, failure


def take_parameters(node: nbformat.NotebookNode, name: str) -> tuple[str, dict, dict]:
    """(preset, {name: (value, default, help)}, the pipeline's own parameters) of a notebook, taken out of its cells.

    Args:
        name: of the notebook, whose defaults a preset may change.
    """
    declared, values = {}, node.metadata.get("papermill", {}).get("parameters", {})
    for cell in list(node.cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or not {PARAMETERS, INJECTED} & set(tags):
            continue
        if PARAMETERS in tags:
            try:
                declared = parse_cell(cell.source, name)
            except WorkbenchError:
                continue
        if not any(output.output_type == "error" for output in cell.outputs):
            node.cells.remove(cell)
    own = {word: values.get(word, p.default) for word, p in declared.items() if word in OWN}
    preset = str(own.get("preset") or own.get("profile") or "")
    parameters = {
        word: (values.get(word, p.default), p.default, p.help)
        for word, p in declared.items()
        if word not in OWN
    }
    return preset, parameters, own


def settings_table(parameters: dict, settings: dict) -> tuple[list[tuple], list[tuple]]:
    """Rows (setting, value, the preset's, help) of what differs from the preset, and (setting, value, help) of the rest.

    Args:
        parameters: {name: (value, default, help)} of the notebook; one that a setting took over is not repeated.
        settings: the same of its typed configuration, by dotted names; {} if it has none.
    """
    taken: dict[
        str, set[str]
    ] = {}  # {name of a parameter: the values of the settings that it may stand for}
    for name, entry in settings.items():
        for part in {name.partition(".")[0], name.rpartition(".")[2]}:
            taken.setdefault(part, set()).add(value_text(entry[0]).replace(" ", ""))
    alone = {
        name: entry
        for name, entry in parameters.items()
        if name != "overrides"
        and (name not in taken or entry[0] != entry[1])
        and value_text(entry[0]).replace(" ", "") not in taken.get(name, ())
    }
    own = {name: entry for name, entry in settings.items() if name.rpartition(".")[2] not in alone}
    known = {name: tuple(map(value_text, entry)) for name, entry in (alone | own).items()}
    changed = [(name, *entry) for name, entry in known.items() if entry[0] != entry[1]]
    return changed, [(name, e[0], e[2]) for name, e in known.items() if e[0] == e[1]]


def command(name: str, preset: str, parameters: dict, own: dict) -> str:
    """The command that makes the page of a notebook again."""
    words = ["python", "-m", "dfkd_lib", "run", "--profile", preset, "--only", name[:2]]
    for parameter, (value, default, _) in parameters.items():
        words += ["--set", f"{name[:2]}.{parameter}={value}"] if value != default else []
    for own_name, option in (("out_dir", "--out"), ("artifacts_dir", "--artifacts")):
        words += [option, str(own[own_name])] if own_name in own else []
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
                entry["label"] = f"{kind.removesuffix('s').capitalize()} {count[kind]}."
                if kind == "figures":
                    entry = place_figure(folder, entry) or entry
                    if not entry["source"] and "image/png" in data:
                        entry["source"] = f"data:image/png;base64,{data['image/png']}"
                entry["html"] = Markup(data.get("text/html", ""))
                output.data = {"text/html": templates().globals["parts"].figure(entry)}


def read_entry(note: dict) -> dict | None:
    """What a report noted of a figure or table, all text; None if its name is no file name."""
    name = note.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return None
    keys = note.get("keys")
    return {
        "name": name,
        "caption": str(note.get("caption") or ""),
        "paper": str(note.get("paper") or ""),
        "keys": [str(key) for key in keys] if isinstance(keys, list) else [],
        **{"source": None, "width": None, "html": "", "links": []},
    }


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
    return {
        **entry,
        "html": html,
        "links": files_of(folder, "tables", entry["name"], ("csv", "tex")),
    }


def files_of(folder: Path, part: str, name: str, kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """(kind, relative link) of the files of a figure or table that exist."""
    names = ((kind.upper(), f"{name}.{kind}") for kind in kinds)
    return [(kind, link(part, file)) for kind, file in names if (folder / part / file).exists()]


def entries(folder: Path, saved: dict, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """(kind, entry) of every figure and table that a report saved, numbered as on its page, with what it shows."""
    for kind, place in (("figures", place_figure), ("tables", place_table)):
        for number, note in enumerate(saved.get(kind, []), 1):
            entry = read_entry(note) if isinstance(note, dict) else None
            if entry and (placed := place(folder, entry)):
                yield kind, {**placed, "label": f"{kind[:-1].capitalize()} {prefix}{number}."}


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
            if all(looks_numeric(row[i].get_text()) for row in body) and any(
                row[i].get_text(strip=True) for row in body
            ):
                for row in rows:
                    if i < len(row):
                        row[i]["class"] = [*row[i].get("class", []), "number"]
    return str(soup)


def looks_numeric(text: str) -> bool:
    """Whether a table cell reads as numbers (also with signs, percent, an interval) or as nothing."""
    return NUMBERS.fullmatch(text) is not None


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
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def memory(megabytes: float | None) -> str:
    """Megabytes (10⁶) as a person reads them."""
    if not megabytes:
        return ""
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def link(*parts: str) -> str:
    """A relative link to a file beside the page."""
    return "/".join(quote(part) for part in parts)
