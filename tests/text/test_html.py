"""HTML: what a reader sees, a block a line, under the headings it stands under."""

from pathlib import Path

import pytest

from mamba_ssm.errors import BookError
from mamba_ssm.text import html as html_module
from mamba_ssm.text import read_pieces


def pieces(tmp_path: Path, markup: str | bytes) -> list[tuple[str | None, str]]:
    path = tmp_path / "page.html"
    path.write_bytes(markup if isinstance(markup, bytes) else markup.encode())
    return [(piece.section, piece.text) for piece in read_pieces(path)]


def text(tmp_path: Path, markup: str | bytes) -> str:
    return "".join(part for _, part in pieces(tmp_path, markup))


def test_blocks_end_lines_and_inline_elements_do_not(tmp_path: Path) -> None:
    markup = "<p>A  <b>green</b>\n leaf<i>let</i>.</p><div>One<br>two</div><ul><li>x<li> y</ul>done"
    assert text(tmp_path, markup) == "A green leaflet.\n\nOne\ntwo\n\nx\ny\n\ndone\n"


def test_what_is_not_prose_is_dropped(tmp_path: Path) -> None:
    markup = (
        "<head><style>p{}</style></head><nav>menu</nav><script>x()</script><p>a<!-- b -->c</p><template>t</template>"
    )
    assert text(tmp_path, markup) == "ac\n"


def test_preformatted_text_keeps_its_lines(tmp_path: Path) -> None:
    markup = "<p>Run:</p><pre>if x:\n    <b>go</b>\n\n  stop\n</pre><p>Then</p>"
    assert text(tmp_path, markup) == "Run:\n\nif x:\n    go\n\n  stop\n\nThen\n"


def test_a_table_gives_a_line_a_row(tmp_path: Path) -> None:
    markup = """<p>Codes</p><table> <tr> <th>Code</th> <th>Meaning</th> </tr>
        <tr><td></td><td>&nbsp;</td><td><p>1</p></td><td><p>general</p></td></tr>
        <tr><td>2</td><td>misuse</td></tr></table><p>End"""
    assert text(tmp_path, markup) == "Codes\n\nCode | Meaning\n1 | general\n2 | misuse\n\nEnd\n"


def test_sections_follow_headings_after_the_title(tmp_path: Path) -> None:
    markup = "<title>Book</title><p>Intro</p><h1>1 <i>Light</i></h1><p>a</p><h2></h2><p>b</p><h3>1.1  Leaf</h3>c"
    assert [(section, part.strip()) for section, part in pieces(tmp_path, markup)] == [
        ("Book", "Intro"),
        ("1 Light", "1 Light\n\na\n\nb"),
        ("1.1 Leaf", "1.1 Leaf\n\nc"),
    ]


@pytest.mark.parametrize(
    "markup",
    [
        '<meta charset="iso-8859-1"><p>végétal – “ok”'.encode("cp1252"),
        '<?xml version="1.0" encoding="windows-1252"?><p>végétal – “ok”'.encode("cp1252"),
        '<meta charset="utf-8"><p>végétal – “ok”'.encode(),
        "<p>végétal – “ok”".encode("utf-16"),
        '<meta charset="base64"><p>végétal – “ok”'.encode(),
    ],
)
def test_declared_encodings(tmp_path: Path, markup: bytes) -> None:
    assert text(tmp_path, markup) == "végétal – “ok”\n"


def test_html_is_told_by_content_when_the_name_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.asp"
    path.write_text("\n<!DOCTYPE html><p>one<p>two", encoding="utf-8")
    assert "".join(piece.text for piece in read_pieces(path)) == "one\n\ntwo\n"


def test_very_deep_nesting(tmp_path: Path) -> None:
    assert text(tmp_path, "<div><span>" * 20_000 + "deep") == "deep\n"


def test_a_huge_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_module, "DOCUMENT_BYTES", 1 << 20)
    with pytest.raises(BookError, match="HTML above 1 MB; split"):
        text(tmp_path, "<p>x</p>" * (1 << 18))


@pytest.mark.parametrize("markup", [b"<p>  </p>", b"<script>x</script>"])
def test_html_without_text(tmp_path: Path, markup: bytes) -> None:
    with pytest.raises(BookError, match="nothing but white space"):
        text(tmp_path, markup)
