"""Files as people have them, converted by the real libraries; and their errors, in one line."""

import io
import sys

import pytest

from jax_simcas import summarize
from jax_simcas.common.errors import UserError
from jax_simcas.data.documents import text_of

PAGE = """<!DOCTYPE html>
<html><head><title>Tab</title><style>p {}</style><script>run()</script></head>
<body><h1>Head</h1><p>One <b>bold</b> word &amp; <i>more</i>, é.</p><ul><li>a<li>b</ul></body></html>"""


@pytest.fixture(scope="module", autouse=True)
def _converters():
    for name in ("pypdf", "docx", "inscriptis"):
        pytest.importorskip(name, reason="the converters: pip install 'jax_simcas[documents]'")


def pdf(*lines):
    """A page with lines of text, written by hand."""
    shown = b"".join(b"(%s) Tj 0 -20 Td " % line.encode("latin-1") for line in lines)
    content = b"BT /F1 12 Tf 20 200 Td %sET" % shown
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)
    return out + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


def locked(password, owner):
    import pypdf

    writer, out = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Behind a lock."))), io.BytesIO()
    writer.encrypt(password, owner, algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def docx():
    import docx

    document, out = docx.Document(), io.BytesIO()
    document.add_heading("Title", 1)
    document.add_paragraph("First, wörds.")
    table = document.add_table(2, 2)
    for column in (0, 1):
        table.cell(0, column).text = "same"
    table.cell(1, 0).merge(table.cell(1, 1)).text = "merged"
    document.add_paragraph("End.")
    document.save(out)
    return out.getvalue()


def test_texts_of_documents():
    assert text_of(pdf("Hello world.", "A second line."), "a.pdf") == "Hello world.\nA second line."
    assert text_of(docx(), "a.docx") == "Title\nFirst, wörds.\nsame\tsame\nmerged\nEnd."
    text = text_of(PAGE.encode(), "a.html")
    assert "Head" in text and "One bold word & more, é." in text and "* a" in text
    assert not any(hidden in text for hidden in ("Tab", "run()", "p {}", "<"))
    assert text_of(locked("", "owner"), "a.pdf").strip() == "Behind a lock."


REVIEWED = """\
<w:p><w:pPr><w:tabs><w:tab w:val="left" w:pos="1"/></w:tabs></w:pPr><w:r><w:t>Kept</w:t></w:r>\
<w:ins w:id="1" w:author="a"><w:r><w:t> added</w:t></w:r></w:ins>\
<w:del w:id="2" w:author="a"><w:r><w:delText> deleted</w:delText></w:r></w:del>\
<w:moveFrom w:id="3" w:author="a"><w:r><w:t> moved away</w:t></w:r></w:moveFrom>\
<w:sdt><w:sdtContent><w:r><w:tab/><w:t>chosen</w:t></w:r></w:sdtContent></w:sdt></w:p>\
<w:sdt><w:sdtPr/><w:sdtContent><w:p><w:r><w:t>In a control</w:t></w:r></w:p></w:sdtContent></w:sdt>\
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:sdt><w:sdtContent><w:tc><w:tbl><w:tr><w:tc><w:p><w:r>\
<w:t>inner</w:t></w:r></w:p></w:tc></w:tr></w:tbl><w:p/></w:tc></w:sdtContent></w:sdt></w:tr></w:tbl>\
<w:p><w:r><w:t>Box:</w:t><w:pict><w:txbxContent><w:p><w:r><w:t>boxed</w:t></w:r></w:p></w:txbxContent></w:pict></w:r></w:p>\
"""


def test_docx_in_review_and_from_templates_is_read_whole():
    import docx
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    document, out = docx.Document(), io.BytesIO()
    for element in parse_xml(f"<w:body {nsdecls('w')}>{REVIEWED}</w:body>"):
        document.element.body.insert(len(document.element.body) - 1, element)
    document.save(out)
    read = text_of(out.getvalue(), "a.docx")
    assert read == "Kept added\tchosen\nIn a control\na\tinner\n\nBox:\nboxed\n"


def test_the_first_bytes_tell_more_than_the_name():
    assert text_of(pdf("Hello."), "-") == text_of(b"\n" + pdf("Hello."), "report.txt") == "Hello."
    assert text_of(docx(), "a.zip") == text_of(docx(), "-")
    assert (
        text_of(PAGE.encode(), "-") == text_of(b"\xef\xbb\xbf" + PAGE.encode(), "x.htm") == text_of(PAGE.encode(), "x")
    )
    assert text_of(PAGE.encode(), "page.txt") == PAGE  # text about HTML
    assert text_of(b"\xef\xbb\xbfplain", "a.txt") == "plain" == text_of(b"plain", "-")


def test_encodings_of_pages():
    assert "日本" in text_of('<meta charset="shift_jis"><p>日本</p>'.encode("shift_jis"), "a.html")
    assert "日本" in text_of("<p>日本</p>".encode(), "a.html")
    assert "café" in text_of("<p>café</p>".encode("latin-1"), "a.html")


BAD = {
    "no text": (lambda: pdf(), "a.pdf", r"PDF without any text; are its pages pictures\?"),
    "no PDF": (lambda: b"words", "a.pdf", "not PDF that can be read"),
    "cut": (lambda: pdf("Hello.")[:200], "a.pdf", "not PDF that can be read"),
    "locked": (lambda: locked("word", "owner"), "a.pdf", "PDF that needs a password"),
    "no DOCX": (lambda: b"PK\x03\x04", "a.docx", "not DOCX that can be read"),
    "cut DOCX": (lambda: docx()[:-400], "a.docx", "not DOCX that can be read"),
    "old Word": (lambda: b"\xd0\xcf\x11\xe0\xa1", "a.doc", r"a Word file of before 2007: save it as \.docx"),
    "no words": (lambda: b"<html><body></body></html>", "a.html", "HTML without any text"),
    "binary": (lambda: b"\xff\x00", "a.txt", r"not UTF-8 \(byte 0 is 0xff\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_converted_are_one_line(name, capfd):
    make, file, message = BAD[name]
    with pytest.raises(UserError, match=message) as error:
        text_of(make(), file)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("library", "name"), [("pypdf", "a.pdf"), ("docx", "a.docx"), ("inscriptis", "a.html")])
def test_without_the_libraries(library, name, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}: pip install 'jax_simcas\[documents\]'"):
        text_of(b"x", name)
    assert text_of(b"x", "a.txt") == "x"


def test_summarize_reads_them(workdir, cache, tmp_path, capsys):
    words = "ask-0 word-1 word-2 word-3"
    (tmp_path / "a.pdf").write_bytes(pdf(words))
    (tmp_path / "b.html").write_text(f"<p>{words}")
    (tmp_path / "c.txt").write_text(words)
    (tmp_path / "d.pdf").write_bytes(b"words")
    files = [str(tmp_path / name) for name in ("a.pdf", "b.html", "c.txt", "d.pdf")]
    assert summarize.main([f"--model={workdir}", "--num-beams=1", *files]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3 and len(set(lines)) == 1 and captured.err.count("\n4 tokens in 1 chunk") == 3
    assert f"error: {tmp_path}/d.pdf: not PDF that can be read" in captured.err and "Traceback" not in captured.err
