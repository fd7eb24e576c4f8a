"""LaTeX: what is printed stays, what commands it goes; nothing that a file names is opened."""

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamba_ssm.errors import BookError
from mamba_ssm.text import latex as latex_module
from mamba_ssm.text import read_pieces


def pieces(tmp_path: Path, source: str | bytes) -> list[tuple[str | None, str]]:
    path = tmp_path / "book.tex"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return [(piece.section, piece.text) for piece in read_pieces(path)]


def text(tmp_path: Path, source: str | bytes) -> str:
    return "".join(part for _, part in pieces(tmp_path, source)).strip("\n")


def test_sections(tmp_path: Path) -> None:
    source = (
        r"\documentclass{book}\usepackage{x}\begin{document}Before."
        "\n"
        r"\chapter[Short]{Light and \emph{Leaves}}\label{a} One. % \section{no}"
        "\n"
        r"\section*{ Water  {\bf here} } Two.\end{document}\section{Never}"
    )
    assert pieces(tmp_path, source) == [
        (None, "Before.\n\n"),
        ("Light and Leaves", "Light and Leaves\n\nOne.\n\n"),
        ("Water here", "Water here\n\nTwo.\n\n"),
    ]


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        (
            r"d'o\`u l'\'etude, na\"{\i}ve, fa\c{c}ade, Dvo\v{r}\'ak, \'\i, Stra\ss e",
            "d'où l'étude, naïve, façade, Dvořák, í, Straße",
        ),
        (r"10\% of 5\,\$ \& ``all''---or 1--2~\LaTeX{}", "10% of 5 $ & “all”—or 1–2 LaTeX"),
        (r"Known.\footnote{Not to \emph{all}.} See \cite[p.~3]{darwin}.", "Known. (Not to all.) See [darwin]."),
        (
            r"{\bf Bold} and \textbf{fat}, \href{http://x.org}{here}\index{fat}, \unknown{kept}",
            "Bold and fat, here, kept",
        ),
        (r"It is $E = mc^2$, \(a_1 + b\) or \verb|x_y & z|.", r"It is $E = mc^2$, \(a_1 + b\) or x_y & z."),
        ("One % gone\ntwo\n\n% gone\nthree", "One two\n\nthree"),
        (r"A $ alone, and an {open group", "A $ alone, and an open group"),
        ("\\begin{itemize}\n\\item one\n\\item two\n\\end{itemize}", "one\ntwo"),
    ],
)
def test_what_is_printed(tmp_path: Path, source: str, printed: str) -> None:
    assert text(tmp_path, source) == printed


def test_a_table_gives_a_line_a_row(tmp_path: Path) -> None:
    source = r"""\begin{tabular}{l|r}
      \hline
      Code & Meaning \\ \hline
      1 & general \\[2pt]
      2 & \multicolumn{2}{c}{misuse} \\
      \bottomrule
    \end{tabular}"""
    assert text(tmp_path, source) == "Code | Meaning\n1 | general\n2 | misuse"


def test_listings_and_equations_keep_their_lines(tmp_path: Path) -> None:
    source = r"""Run:
\begin{verbatim}
if x:   % no comment
    go()  & \section{no}
\end{verbatim}
\begin{lstlisting}[language=C]
int x;
  return;
\end{lstlisting}
\begin{align*}
  a &= b \\
  c &= d
\end{align*}"""
    listings = "if x:   % no comment\n    go()  & \\section{no}\n\nint x;\n  return;"
    assert text(tmp_path, source) == f"Run:\n\n{listings}\n\na &= b \\\\\nc &= d"


def test_no_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.tex").write_text("secret")
    source = rf"One. \input{{secret}}\include{{secret}}\input{{{tmp_path}/secret.tex}}\verbatiminput{{secret.tex}} Two."
    assert "secret\n" not in text(tmp_path, source)
    assert text(tmp_path, source).startswith("One.")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    assert text(tmp_path, "La forêt est très grande, déjà.".encode(encoding)) == "La forêt est très grande, déjà."


@pytest.mark.parametrize(
    "part",
    [
        "{",
        "}",
        "$",
        "\\[",
        "\\(",
        "\\section{",
        "\\begin{a}",
        "\\begin{verbatim}",
        "\\verb|",
        "\\label{",
        "\\'",
        "&",
        "%",
        "[",
    ],
)
def test_time_grows_with_the_length_alone(tmp_path: Path, part: str) -> None:
    source = "word " + part * (400_000 // len(part))
    started = time.perf_counter()
    with contextlib.suppress(BookError):
        text(tmp_path, source)
    assert time.perf_counter() - started < 20  # the square of the length would take minutes


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latex_module, "SOURCE_BYTES", 1000)
    with pytest.raises(BookError, match="LaTeX above 0 MB; split the file"):
        text(tmp_path, "word " * 1000)


PARTS = (
    r"\section \begin \end { } [ ] verbatim document tabular $ $$ \( \) \ % & ~ \' \c e \verb | \item \footnote 水 é"
)
SOURCE = st.lists(st.sampled_from([*PARTS.split(" "), "\n", "\n\n", " "]), max_size=40).map("".join)


@given(source=SOURCE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_source_gives_text_or_a_book_error(tmp_path: Path, source: str) -> None:
    with contextlib.suppress(BookError):  # and nothing else
        assert pieces(tmp_path, "x" + source) == pieces(tmp_path, "x" + source)


@pytest.mark.timeout(20)
def test_a_dollar_that_none_closes_before_a_last_backslash(tmp_path: Path) -> None:
    assert text(tmp_path, "It costs $5 \\").startswith("It costs $5")
