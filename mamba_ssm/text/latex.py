"""LaTeX to text in one pass over its characters: no macro is defined, no file is opened, nothing nests.

Commands go and their arguments stay, but for those that print nothing. Mathematics and listings stay as they are
written, a table is a line a row, and \\part to \\subsubsection open sections.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from mamba_ssm.errors import BookError
from mamba_ssm.text.encoding import file_encoding
from mamba_ssm.text.piece import Piece, title

SOURCE_BYTES = 8 << 20
GROUP_CHARS, GROUP_DEPTH = 4_000, 30  # a title, or an argument that is left out
MATHS_CHARS = 4_000

_BODY = re.compile(r"^[^%\n]*\\begin\{document\}", re.M)
_TOKEN = re.compile(
    r"(?P<comment>%[^\n]*(?:\n[ \t]*(?=\S))?)|\\(?P<word>[A-Za-z@]+)\*?|\\(?P<sign>[^A-Za-z@])"
    r"|(?P<dollars>\$\$?)|(?P<mark>[{}&~]|``|''|---?)"
)
_SECTIONS = frozenset(("part", "chapter", "section", "subsection", "subsubsection"))
_LISTINGS = frozenset(("verbatim", "Verbatim", "lstlisting", "minted", "alltt", "comment"))
_MATHS = frozenset(("equation", "align", "gather", "multline", "eqnarray", "displaymath", "math", "flalign", "alignat"))
# Commands, and environments after \begin, whose first argument, or first two, print nothing.
_DROP_ONE = (
    "label index vspace hspace includegraphics bibliographystyle bibliography usepackage documentclass pagestyle "
    "thispagestyle input include includeonly color textcolor colorbox hypersetup href pagenumbering parbox raisebox "
    "scalebox hyphenation graphicspath lstset usetikzlibrary nocite phantom vphantom hphantom selectlanguage "
    "tabular longtable minipage thebibliography multicols array cline cmidrule"
)
_DROP_TWO = (
    "setlength addtolength setcounter addtocounter resizebox multicolumn multirow newcommand renewcommand "
    "providecommand newtheorem fontsize rule addcontentsline markboth tabular* tabularx wrapfigure"
)
_DROPPED = dict.fromkeys(_DROP_ONE.split(), 1) | dict.fromkeys(_DROP_TWO.split(), 2)
_DROPPED |= {"newenvironment": 3, "renewenvironment": 3}
# Commands whose argument stands in brackets.
_BRACKETS = {"footnote": (" (", ")"), "cite": ("[", "]"), "citep": ("[", "]"), "citet": ("[", "]"), "tag": ("(", ")")}
_WORDS = {"par": "\n\n", "newline": "\n", "tabularnewline": "\n", "newpage": "\n\n", "clearpage": "\n\n"}
_WORDS |= {"quad": " ", "qquad": " ", "ldots": "…", "dots": "…", "textellipsis": "…", "textbackslash": "\\"}
_WORDS |= {"LaTeX": "LaTeX", "TeX": "TeX", "textasciitilde": "~", "textasciicircum": "^", "S": "§", "P": "¶"}
_WORDS |= {"ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø", "aa": "å", "AA": "Å", "l": "ł"}
_WORDS |= {"L": "Ł", "i": "ı", "j": "ȷ", "copyright": "©", "pounds": "£", "dag": "†", "textendash": "–"}
_WORDS |= {"textemdash": "—", "textquoteleft": "‘", "textquoteright": "’", "textdegree": "°", "euro": "€"}
_SIGNS = {"\\": "\n", "-": "", "/": "", "@": "", ",": " ", ";": " ", ":": " ", "!": "", " ": " ", "\n": " "}
_MARKS = {"&": " | ", "~": " ", "``": "“", "''": "”", "--": "–", "---": "—"}
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ".": "\u0307"}
_ACCENTS |= {"u": "\u0306", "v": "\u030c", "H": "\u030b", "c": "\u0327", "k": "\u0328", "r": "\u030a", "d": "\u0323"}
_ACCENTED = re.compile(r"\s*(?:\{\s*\\?([^\W\d_])\s*\}|\\([ij])(?![A-Za-z])|([^\W\d_]))")
_STARTS = {"(": "\\)", "[": "\\]"}
_BRACES = re.compile(r"\\.|[{}]", re.S)
_ROW_END = re.compile(r"\*?[ \t]*(?:\[[^\]\n]{0,40}\])?[ \t]*\n?")
_RULES = frozenset(("hline", "cline", "toprule", "midrule", "bottomrule", "cmidrule"))


def read_latex(path: Path) -> Iterator[Piece]:
    """Pieces of a .tex file. Files that it names with \\input are not read: give the folder, for a book in several."""
    if path.stat().st_size > SOURCE_BYTES:
        raise BookError(f"LaTeX above {SOURCE_BYTES >> 20} MB; split the file, and give the folder that it is in")
    source = path.read_text(encoding=file_encoding(path), errors="replace")
    body = _BODY.search(source)
    yield from _Scan(source, body.end() if body else 0, _SECTIONS).pieces()


class _Scan:
    """The source, how far it was read, and the running text since the last listing or title."""

    def __init__(self, source: str, at: int, sections: frozenset[str]) -> None:
        self.source, self.at, self.sections = source, at, sections
        self.section: str | None = None
        self.flow: list[str] = []
        self.found: dict[str, int] = {}
        self.closers: list[str] = []  # what to write at the end of each open group
        self.closer = ""  # what to write at the end of the next one

    def pieces(self) -> Iterator[Piece]:
        while match := _TOKEN.search(self.source, self.at):
            self.flow.append(self.source[self.at : match.start()])
            self.at = match.end()
            if word := match["word"]:
                if word == "end" and self._group() == "document":
                    break
                if word in self.sections and self.source.startswith(("{", "["), self._skipped_space()):
                    yield from self._heading()
                elif word == "begin":
                    yield from self._environment(self._group())
                else:
                    self._word(word)
            elif sign := match["sign"]:
                self._sign(sign)
            elif dollars := match["dollars"]:
                self._maths(dollars, dollars)
            elif mark := match["mark"]:
                self._mark(mark)
        else:
            self.flow.append(self.source[self.at :])
        yield from self._flush()

    def text(self) -> str:
        """All of it as one line."""
        return " ".join("".join(piece.text for piece in self.pieces()).split())

    def _flush(self) -> Iterator[Piece]:
        lines = [" ".join(line.split()) for line in "".join(self.flow).split("\n")]
        self.flow.clear()
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
        if text:
            yield Piece(f"{text}\n\n", section=self.section)

    def _heading(self) -> Iterator[Piece]:
        yield from self._flush()
        self.at = self._skipped_space()
        self._options()
        name = title(_Scan(self._group(), 0, frozenset()).text())
        if name:
            self.section = name
            yield Piece(f"{name}\n\n", section=name)

    def _environment(self, name: str) -> Iterator[Piece]:
        kind = name.rstrip("*")
        if kind not in _LISTINGS and kind not in _MATHS:
            self.flow.append("\n" if kind == "document" else "\n\n")
            self._arguments(name if name in _DROPPED else kind)
            return
        end = self.source.find(f"\\end{{{name}}}", self.at)
        end = len(self.source) if end < 0 else end
        if kind in _MATHS:
            self.flow += ["\n", self.source[self.at : end].strip(), "\n"]
        elif kind != "comment":
            if kind in ("lstlisting", "minted", "Verbatim"):
                self._options()
                if kind == "minted":
                    self._group()
            yield from self._flush()
            if listing := self.source[self.at : end].strip("\n").rstrip():
                yield Piece(f"{listing}\n\n", section=self.section)
        self.at = min(end + len(name) + 6, len(self.source))

    def _word(self, word: str) -> None:
        if word == "verb" and self.at < len(self.source):
            end = self.source.find(self.source[self.at], self.at + 1, self.at + GROUP_CHARS)
            if end >= 0:
                self.flow.append(self.source[self.at + 1 : end])
                self.at = end + 1
        elif word in _ACCENTS and (match := _ACCENTED.match(self.source, self.at)):
            self._accent(word, match)
        elif word == "item":
            self.flow.append("" if "".join(self.flow[-1:]).rstrip(" \t").endswith("\n") else "\n")
        elif word in _WORDS:
            self.flow.append(_WORDS[word])
            self.at = self._skipped_space()
        elif word == "end":
            self.flow.append("\n\n")
        elif word in _RULES:
            self._arguments(word)
            self._line_end()
        else:
            self._arguments(word)
            if word in _BRACKETS and self.source.startswith("{", self.at):
                before, self.closer = _BRACKETS[word]
                self.flow.append(before)

    def _sign(self, sign: str) -> None:
        if sign in _STARTS:
            self._maths(f"\\{sign}", _STARTS[sign])
        elif sign in _ACCENTS and (match := _ACCENTED.match(self.source, self.at)):
            self._accent(sign, match)
        else:
            self.flow.append(_SIGNS.get(sign, sign))
            if sign == "\\":
                self._line_end()

    def _accent(self, accent: str, match: re.Match[str]) -> None:
        letter = match[1] or match[2] or match[3]
        self.flow.append(unicodedata.normalize("NFC", letter + _ACCENTS[accent]))
        self.at = match.end()

    def _maths(self, start: str, end: str) -> None:
        """Mathematics as it is written; a dollar that none closes is a dollar."""
        close = self._find(end)
        most = min(self.at + MATHS_CHARS, len(self.source))
        while close < most and end == "$" and self.source[close - 1 : close] == "\\":
            close = self.source.find(end, close + 1) % (len(self.source) + 1)
        if close > min(self._find("\n\n"), self.at + MATHS_CHARS, len(self.source) - 1):
            self.flow.append(start)
            return
        self.flow.append(start + self.source[self.at : close] + end)
        self.at = close + len(end)

    def _find(self, mark: str) -> int:
        """Where a mark comes next, the source's length where it does not. Each stretch is searched once."""
        if self.found.get(mark, -1) < self.at:
            self.found[mark] = self.source.find(mark, self.at) % (len(self.source) + 1)
        return self.found[mark]

    def _mark(self, mark: str) -> None:
        if mark == "{":
            self.closers.append(self.closer)
            self.closer = ""
        elif mark == "}":
            self.flow.append(self.closers.pop() if self.closers else "")
        else:
            self.flow.append(_MARKS[mark])

    def _arguments(self, name: str) -> None:
        """Pass over what prints nothing: options, and as many arguments as the name has of that kind."""
        self._options()
        for _ in range(_DROPPED.get(name, 0)):
            self._group()
            self._options()

    def _line_end(self) -> None:
        """Pass over the source's own line end after one that was commanded, and over the rule between two rows."""
        if match := _ROW_END.match(self.source, self.at):
            self.at = match.end()

    def _options(self) -> None:
        if self.source.startswith("[", self.at):
            end = self.source.find("]", self.at, self.at + GROUP_CHARS)
            self.at = end + 1 if end >= 0 else self.at

    def _group(self) -> str:
        """The argument in braces that comes next, which is passed over; empty where there is none, or no end to it."""
        start = self._skipped_space()
        if not self.source.startswith("{", start):
            return ""
        depth = 0
        for brace in _BRACES.finditer(self.source, start, start + GROUP_CHARS):
            depth += (brace[0] == "{") - (brace[0] == "}")
            if depth == 0:
                self.at = brace.end()
                return self.source[start + 1 : brace.start()]
            if depth > GROUP_DEPTH:
                break
        return ""

    def _skipped_space(self) -> int:
        at = self.at
        while at < len(self.source) and self.source[at] in " \t":
            at += 1
        return at
