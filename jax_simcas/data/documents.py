"""The text of a file as people have it: plain text, PDF, HTML or DOCX. All but text needs the extra `documents`.

pypdf reads PDF, inscriptis HTML (laid out as a browser would), python-docx opens DOCX. Of DOCX all text of the body is
taken, also what is in content controls, text boxes or tracked insertions, which python-docx's paragraphs leave out.
"""

from __future__ import annotations

import importlib
import io
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from jax_simcas.common.errors import UserError, kind_and_line
from jax_simcas.common.files import not_utf8

TEXT = (".txt", ".md", ".text")  # names of plain text, whatever it begins with
HTML = (".html", ".htm", ".xhtml")
HTML_HEAD = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S
)
# Of DOCX: what stands for a character; and settings, text that was deleted or moved away, what is there once more for
# older programs.
MARKS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
PROPERTIES = ("pPr", "rPr", "tblPr", "tblGrid", "trPr", "tcPr", "sdtPr", "sectPr")
UNREAD = (*PROPERTIES, "del", "moveFrom", "instrText", "Fallback")
OLD_WORD = b"\xd0\xcf\x11\xe0"


def text_of(data: bytes, name: str) -> str:
    """The text of a file's content; its name and its first bytes tell what it is.

    Raises:
      UserError: not UTF-8 text, or not readable as what it is, or without text; the caller says which file.
    """
    kind = kind_of(data, name)
    if kind == "DOC":
        raise UserError("a Word file of before 2007: save it as .docx")
    if kind != "text":
        return _converted(kind, data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(data, f"byte {error.start} is 0x{data[error.start]:02x}")) from None


def kind_of(data: bytes, name: str) -> str:
    """text, PDF, HTML, DOCX or DOC."""
    suffix = PurePath(name).suffix.lower()
    if data[:1024].lstrip().startswith(b"%PDF-"):
        return "PDF"
    if data.startswith(OLD_WORD):
        return "DOC"
    if data.startswith(b"PK") and _is_docx(data):
        return "DOCX"
    if suffix in HTML or (suffix not in TEXT and HTML_HEAD.match(data)):
        return "HTML"
    return {".pdf": "PDF", ".docx": "DOCX"}.get(suffix, "text")


def _is_docx(data: bytes) -> bool:
    try:
        return "word/document.xml" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return False


def _converted(kind: str, data: bytes) -> str:
    try:
        text = {"PDF": _pdf, "HTML": _html, "DOCX": _docx}[kind](data)
    except UserError:
        raise
    except Exception as error:  # the libraries raise anything for a damaged file
        raise UserError(f"not {kind} that can be read ({kind_and_line(error)})") from None
    if not text.strip():
        scan = "; are its pages pictures? recognise their text first" if kind == "PDF" else ""
        raise UserError(f"{kind} without any text{scan}")
    return text


def _pdf(data: bytes) -> str:
    pypdf = _library("pypdf", "PDF")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every flaw that it mends
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise UserError("PDF that needs a password: save it without one")
    return "\n\n".join(page.extract_text().strip() for page in reader.pages)


def _html(data: bytes) -> str:
    inscriptis, lxml = _library("inscriptis", "HTML"), _library("lxml.html", "HTML")
    try:
        return inscriptis.get_text(data.decode("utf-8-sig"))
    except UnicodeDecodeError:  # then as its <meta charset> says, or Latin-1
        engine = importlib.import_module("inscriptis.html_engine")
        return engine.Inscriptis(lxml.document_fromstring(data), None).get_text()


def _docx(data: bytes) -> str:
    docx = _library("docx", "DOCX")
    return "\n".join(_lines(docx.Document(io.BytesIO(data)).element.body))


def _lines(element: Any) -> Iterator[str]:
    """The lines of what holds paragraphs: one for each paragraph, and for each row of a table."""
    for child in element.iterchildren("{*}*"):
        kind = _kind(child)
        if kind == "p":
            yield "".join(_pieces(child))
        elif kind == "tr":
            yield "\t".join("\n".join(_lines(cell)) for cell in _cells(child))
        elif kind not in UNREAD:
            yield from _lines(child)


def _cells(row: Any) -> Iterator[Any]:
    """The cells of a table's row; one that continues the cell above is empty."""
    for child in row.iterchildren("{*}*"):
        if _kind(child) == "tc":
            yield child
        elif _kind(child) not in UNREAD:
            yield from _cells(child)


def _pieces(element: Any) -> Iterator[str]:
    """The text within a paragraph; paragraphs within it, as text boxes have, are lines of their own."""
    for child in element.iterchildren("{*}*"):
        kind = _kind(child)
        if kind == "t":
            yield child.text or ""
        elif kind in MARKS:
            yield MARKS[kind]
        elif kind == "txbxContent":
            yield "".join(f"\n{line}" for line in _lines(child)) + "\n"
        elif kind not in UNREAD:
            yield from _pieces(child)


def _kind(element: Any) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _library(name: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{kind} needs {name}: pip install 'jax_simcas[documents]'") from None
