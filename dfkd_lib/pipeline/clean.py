"""What a notebook's outputs and texts may put into a page: text, tables, formulas, pictures and links; nothing that acts."""

import base64
import binascii
import re

import bleach
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup

TEXT = set(
    """
    a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption
    figure h1 h2 h3 h4 h5 h6 hr i img kbd li mark ol p pre s samp small span strong sub summary
    sup table tbody td tfoot th thead tr ul var
    """.split()
)
MATH = set(
    """
    math menclose mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mroot mrow mspace
    msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover
    """.split()
)
PLAIN = set(
    """
    align alt class colspan display fence height id linethickness lspace mathvariant columnalign
    columnlines columnspacing rowspacing rowlines open rowspan rspace scope span start stretchy
    style symmetric title width xmlns accent accentunder form separator maxsize minsize
    movablelimits mathsize scriptlevel displaystyle depth voffset notation
    """.split()
)
PROPERTIES = set(
    """
    background-color color font-style font-weight max-width min-width text-align vertical-align
    white-space width
    """.split()
)
STYLES = CSSSanitizer(allowed_css_properties=PROPERTIES)
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]*")
# Elsewhere, in this page, or beside it.
LINK = re.compile(r"https?://|mailto:|#|[\w.~%-]+(/[\w.~%-]+)*(#[\w.-]*)?$")
SIDES = ("width", "height")
ACTIVE = "script style template noscript iframe object svg title textarea".split()
SHOWN = ("text/html", "text/markdown", "text/plain", "image/png", "image/jpeg", "image/svg+xml")


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "href":
        return tag == "a" and LINK.match(value.strip()) is not None
    if name == "src":
        return tag == "img" and PICTURE.fullmatch(value) is not None
    return name in PLAIN


def clean(text: str) -> str:
    """HTML without scripts, handlers, styles of its own, frames, forms, redirections, or anything fetched from elsewhere."""
    if "<" not in text:
        return text
    soup = BeautifulSoup(text, "html.parser")
    for tag in soup(ACTIVE):
        tag.decompose()  # with what is in it, which is no text to read
    return bleach.clean(
        str(soup),
        tags=TEXT | MATH,
        attributes=_allowed,
        css_sanitizer=STYLES,
        strip=True,
        protocols={"http", "https", "mailto", "data"},
    )


def clean_output(output: dict) -> None:
    """Leave in a cell's output only what a page shows, each kind in a form that cannot act, in place."""
    data = output.get("data")
    if not isinstance(data, dict):
        return
    for kind in set(data) - set(SHOWN):
        del data[kind]
    for kind in {"image/png", "image/jpeg"} & set(data):
        try:
            data[kind] = base64.b64encode(base64.b64decode(data[kind], validate=False)).decode()
        except (binascii.Error, TypeError, ValueError):
            del data[kind]
    if "text/html" in data:
        data["text/html"] = clean("".join(data["text/html"]))
    drawing = data.pop("image/svg+xml", None)
    if drawing is not None and "text/html" not in data:
        # As a picture it can neither run a script nor fetch anything.
        code = base64.b64encode("".join(drawing).encode()).decode()
        data["text/html"] = f'<img alt="" src="data:image/svg+xml;base64,{code}">'
    sizes = {k: v for k, v in output.get("metadata", {}).items() if isinstance(v, dict)}
    output["metadata"] = {
        kind: {side: x for side, x in sizes[kind].items() if side in SIDES and isinstance(x, int)}
        for kind in data.keys() & sizes
    }
