"""Executed notebooks and the index of a run as pages that need neither network nor script."""

import base64
import csv
import json
import re
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

from dfkd_lib.core.files import replacing
from dfkd_lib.pipeline.clean import clean, clean_output

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
)  # of a figure or table, as `report` writes them: never a path
# From this width (points), this width/height, or this many columns or letters in a row an entry takes the whole row.
WIDE_POINTS, WIDE_ASPECT, WIDE_COLUMNS, WIDE_LETTERS = 540, 1.9, 6, 48
NUMBERS = re.compile(r"(?:[-–—−+±%.,→()\[\]\s\d]|(?<=\d)e[-+]?\d+|nan|to)*")
LARGEST_SVG = 3_000_000  # bytes; a larger figure is linked but not embedded


class MathRenderer(IPythonRenderer):
    """Markdown whose TeX becomes MathML, which browsers draw themselves."""

    def _math(self, tex: str, display: str) -> str:
        try:
            return tex_to_mathml(tex, display=display)
        except (
            Exception
        ):  # the converter has no error class of its own; TeX it cannot read is shown as it is
            return f"<code>{self.escape_html(tex)}</code>"

    def block_math(self, body: str) -> str:
        return self._math(body, "block")

    def inline_math(self, body: str) -> str:
        return self._math(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return self._math(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


class PageExporter(HTMLExporter):
    """nbconvert's HTML exporter with this package's template and no scripts; Markdown may embed no other file."""

    def __init__(self, **options):
        super().__init__(
            template_name="report",
            extra_template_basedirs=[str(TEMPLATES)],
            exclude_anchor_links=True,
            **options,
        )

    def markdown2html(self, context, source):
        path = context.get("resources", {}).get("metadata", {}).get("path", "")
        renderer = MathRenderer(
            escape=False,
            attachments=context.get("cell", {}).get("attachments", {}),
            path=path,
            exclude_anchor_links=True,
        )
        return clean(MarkdownWithMath(renderer=renderer).render(source))

    def default_filters(self):
        yield from super().default_filters()
        yield (
            "markdown2html",
            jinja2.pass_context(lambda context, source: self.markdown2html(context, source)),
        )


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
    for cell in node.cells:
        for output in cell.get("outputs", []):
            clean_output(output)
            data = output.get("data", {})
            if "<table" in data.get("text/html", ""):
                data["text/html"] = align_numbers(data["text/html"])
    resources = {
        "metadata": {"name": notebook.stem, "path": str(notebook.parent)},
        "report_css": (TEMPLATES / "style.css").read_text(),
    }
    html, _ = PageExporter().from_notebook_node(node, resources)
    with replacing(page) as temporary:
        temporary.write_text(html, encoding="utf-8")


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


def value(x: object) -> str:
    """A metric as text, floats to four digits."""
    if isinstance(x, float):
        return f"{x:.4g}"
    if isinstance(x, dict):
        return ", ".join(f"{name}: {value(one)}" for name, one in x.items())
    return ", ".join(map(value, x)) if isinstance(x, list) else str(x)


def link(*parts: str) -> str:
    """A relative link to a file beside the index."""
    return "/".join(quote(part) for part in parts)


def figure_entry(out: Path, entry: dict) -> dict | None:
    """A figure of the gallery: the image as a data address, its caption, its place in the paper and its files."""
    files = {kind: out / "figures" / f"{entry['name']}.{kind}" for kind in ("svg", "png", "pdf")}
    links = [
        (kind.upper(), link("figures", path.name)) for kind, path in files.items() if path.exists()
    ]
    for kind, mime in (("svg", "image/svg+xml"), ("png", "image/png")):
        if files[kind].exists() and files[kind].stat().st_size <= LARGEST_SVG:
            data = files[kind].read_bytes()
            source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
            return {
                **entry,
                "source": source,
                "links": links,
                "wide": kind == "svg" and is_wide(data),
            }
    return None


def is_wide(svg: bytes) -> bool:
    """Whether an SVG (by its viewBox, in points as matplotlib writes it) would be too small in half a row."""
    head = svg[:4000].decode(errors="replace")
    try:
        _, _, width, height = map(float, head.partition('viewBox="')[2].partition('"')[0].split())
        return width > WIDE_POINTS or width >= WIDE_ASPECT * height
    except ValueError:
        return False


def table_entry(out: Path, entry: dict) -> dict | None:
    """A table of the gallery, read from its CSV file: head, rows, which columns hold numbers, and its files."""
    files = {kind: out / "tables" / f"{entry['name']}.{kind}" for kind in ("csv", "tex")}
    if not files["csv"].exists():
        return None
    with open(files["csv"], newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    links = [
        (kind.upper(), link("tables", path.name)) for kind, path in files.items() if path.exists()
    ]
    numeric = [
        any(row[i] for row in rows) and all(looks_numeric(row[i]) for row in rows)
        for i in range(len(head))
    ]
    rows = [[shorten(cell) for cell in row] for row in rows]
    letters = sum(max(map(len, column)) for column in zip(head, *rows, strict=False))
    return {
        **entry,
        "head": head,
        "rows": rows,
        "numeric": numeric,
        "links": links,
        "wide": len(head) >= WIDE_COLUMNS or letters >= WIDE_LETTERS,
    }


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


def notebook_entry(out: Path, name: str, result: dict) -> dict:
    """Everything the index shows of one notebook."""
    saved = read_metrics(out, name) if result["status"] != "skipped" else {}
    shown = {
        kind: [
            e
            for e in (
                make(out, entry)
                for entry in saved.get(kind, [])
                if entry.get("paper") and NAME.fullmatch(str(entry.get("name")))
            )
            if e
        ]
        for kind, make in (("figures", figure_entry), ("tables", table_entry))
    }
    cached = [artifact.get("cached", False) for artifact in saved.get("artifacts", [])]
    parameters = result.get("parameters", {})
    return {
        "error": None,
        "earlier": False,
        "name": name,
        "title": title(out, name),
        **result,
        **shown,
        "made": cached.count(False),
        "found": cached.count(True),
        "seeds": parameters.get("seeds", parameters.get("seed", "")),
        "html": link(f"{name}.html") if (out / f"{name}.html").exists() else None,
        "ipynb": link(f"{name}.ipynb") if (out / f"{name}.ipynb").exists() else None,
    }


def title(out: Path, name: str) -> str:
    """The number of a notebook and its first heading, or its name if it was not run."""
    try:
        cells = json.loads((out / f"{name}.ipynb").read_text())["cells"]
        text = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
        heading = next(line for line in text.splitlines() if line.startswith("# "))
        return f"{name[:2]} · {heading.removeprefix('# ')}"
    except (OSError, ValueError, KeyError, StopIteration):
        return name


def read_metrics(out: Path, name: str) -> dict:
    """What the notebook's report saved, or {}."""
    try:
        saved = json.loads((out / "metrics" / f"{name}.json").read_text())
        return saved if isinstance(saved, dict) else {}
    except (OSError, ValueError):
        return {}


def provenance_rows(provenance: dict) -> list[tuple[str, str]]:
    """Provenance as rows of name and text."""
    git, hardware = provenance["git"], provenance["hardware"]
    commit = (git["commit"] or "unknown") + {
        True: ", with uncommitted changes",
        False: "",
        None: "",
    }[git["dirty"]]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, {hardware['system']}"
    return [
        ("code", commit),
        ("machine", machine),
        ("graphics card", hardware["gpu"] or "none"),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        ),
        (
            "seeds",
            ", ".join(f"{name}: {seed}" for name, seed in provenance["seeds"].items()) or "none",
        ),
        ("command", provenance["command"]),
    ]


def write_index(out: Path, results: dict, headlines: list[dict]) -> Path:
    """Write `index.html` of a run folder from its results; returns the path. All text from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"duration": duration, "memory": memory, "value": value}
    notebooks = [notebook_entry(out, name, result) for name, result in results["notebooks"].items()]
    statuses = ["from earlier runs" if n["earlier"] else n["status"] for n in notebooks]
    provenance = results["provenance"]
    page = environment.get_template("index.html.j2").render(
        profile=results["profile"],
        started=provenance["started"],
        seconds=provenance["seconds"],
        counts=[(status, statuses.count(status)) for status in dict.fromkeys(statuses)],
        notebooks=notebooks,
        peak=results.get("peak_memory_mb"),
        headlines=headlines,
        provenance=provenance_rows(provenance),
        css=Markup((TEMPLATES / "style.css").read_text()),
    )
    with replacing(out / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / "index.html"
