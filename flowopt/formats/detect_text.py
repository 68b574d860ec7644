"""Which kind of text a file is: a pointer to another file, a web page, or any other."""

import html
import re
from typing import Final

from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.printable import printable

_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_POINTER_FIELDS: Final = re.compile(rb"^(oid sha256:[0-9a-f]{64}|size [0-9]{1,18})$", re.MULTILINE)
_PAGE: Final = re.compile(r"<(!doctype\s+html|html|head|body|\?xml|!--)", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^<>]{0,200}>([^<]{0,400})", re.IGNORECASE)
_ROOT: Final = re.compile(r"<([A-Za-z][\w:.-]{0,60})")
_JSON: Final = re.compile(r"\{\s*[\"}]|\[\s*[\[\]{\"\d-]")
_TEXT_CONTROLS: Final = frozenset("\t\n\r\f\x1b")


def detect_text(head: bytes, present: int) -> Detected | None:
    """The kind of a text, from its first bytes; None where they are no text."""
    if head.startswith(_POINTER):
        return _pointer(head, present)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and len(head) > 2:
        text = head[: len(head) // 2 * 2].decode("utf-16", errors="replace")
    else:
        text = _decoded(head)
    if not text or any(not char.isprintable() and char < " " and char not in _TEXT_CONTROLS for char in text):
        return None
    text = text.lstrip("\ufeff \t\r\n\f")
    if _PAGE.match(text):
        return Detected(Kind.HTML, _page(text), present)
    first = printable(text.partition("\n")[0].strip(), 80)
    what = "a JSON text" if _JSON.match(text) else "a text"
    return Detected(Kind.TEXT, f'{what} that begins "{first}"' if first else "blank lines", present)


def _decoded(head: bytes) -> str:
    try:
        return head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The head may end inside a character.
        return head[: error.start].decode("utf-8") if len(head) - error.start < 4 else ""


def _pointer(head: bytes, present: int) -> Detected:
    fields = dict(line.split(b" ", 1) for line in _POINTER_FIELDS.findall(head[:1024]))
    size = int(fields[b"size"]) if b"size" in fields else None
    digest = f" (sha256 {fields[b'oid'][7:15].decode()}...)" if b"oid" in fields else ""
    of_size = "" if size is None else f" of {size:,} bytes"
    return Detected(Kind.LFS_POINTER, f"a Git LFS pointer to a file{of_size}{digest}", present, size)


def _page(text: str) -> str:
    title = _TITLE.search(text)
    if title and title[1].strip():
        return f"an HTML page titled '{printable(html.unescape(title[1]).strip(), 80)}'"
    if text[:5].lower() == "<?xml":
        root = _ROOT.search(text)
        return "an XML document" + (f" (root element {root[1]})" if root else "")
    return "an HTML page"
