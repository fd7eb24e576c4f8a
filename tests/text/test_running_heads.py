"""Running heads and page numbers go; what is said once, or does not count along, stays."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_books import pdf_bytes

from mamba_ssm.text import read_pieces
from mamba_ssm.text.running_heads import without_running_heads

BODY = [[f"Body {letter} {place}." for place in "xyz"] for letter in "abcdefgh"]


def pages_of(heads: list[list[str]], feet: list[list[str]]) -> list[str]:
    return ["\n".join([*head, *body, *foot]) + "\n" for head, body, foot in zip(heads, BODY, feet, strict=True)]


def body(kept: list[str]) -> list[str]:
    return [line for page in kept for line in page.splitlines()]


ALL = [line for lines in BODY for line in lines]
PAGES = range(len(BODY))


@pytest.mark.parametrize(
    "number",
    [
        lambda i: f"{i + 180}",
        lambda i: f"- {i + 7} -",
        lambda i: f"Page {i + 1} of 300",
        lambda i: ["iii", "iv", "v", "vi", "vii", "viii", "ix", "x"][i],
    ],
)
def test_page_numbers_go(number) -> None:
    assert body(list(without_running_heads(pages_of([[]] * 8, [[number(i)] for i in PAGES])))) == ALL
    assert body(list(without_running_heads(pages_of([[number(i)] for i in PAGES], [[]] * 8)))) == ALL


def test_heads_that_differ_from_left_to_right(tmp_path: Path) -> None:
    heads = [[f"{i + 180} The Plant Book"] if i % 2 else [f"8.2 Photosynthesis {i + 180}"] for i in PAGES]
    assert body(list(without_running_heads(pages_of(heads, [[]] * 8)))) == ALL


def test_the_bare_number_of_a_chapters_first_page_goes_too() -> None:
    heads = [["187"] if i == 4 else [f"Chapter {8 + (i > 4)} {i + 183}"] for i in PAGES]
    assert body(list(without_running_heads(pages_of(heads, [[]] * 8)))) == ALL


def test_of_a_head_without_a_number_the_first_stays() -> None:
    kept = list(without_running_heads(pages_of([["The Plant Book"]] * 8, [[str(i)] for i in PAGES])))
    assert body(kept) == ["The Plant Book", *ALL]


@pytest.mark.parametrize(
    "lines",
    [
        ["}"] * 8,
        ["end"] * 8,
        ["1950", "1960", "1970", "1980", "1990", "2000", "2010", "2020"],
        [f"{i} word{letter}" for i, letter in enumerate("abcdefgh")],
        ["See also", "a", "See also", "See also", "b", "c", "See also", "d"],
        [f"Chapter {i}" for i in range(8)],
        [f"See page {i + 7}." for i in range(8)],
        [f"As seen in Figure 28.{i}" for i in range(8)],
        ["Once more.", "", "", "", "", "", "", "Once more."],
    ],
)
def test_other_lines_at_a_pages_edge_stay(lines: list[str]) -> None:
    pages = pages_of([[line] if line else [] for line in lines], [[]] * 8)
    assert list(without_running_heads(pages)) == pages


def test_below_a_line_that_stays_nothing_goes() -> None:
    pages = pages_of([[f"Unlike {letter}", "Alike on every page"] for letter in "abcdefgh"], [[]] * 8)
    assert list(without_running_heads(pages)) == pages


def test_a_word_that_a_page_divides_is_joined_across_number_and_head(tmp_path: Path) -> None:
    pages = [["The Plant Book", *lines, str(i + 5)] for i, lines in enumerate(BODY)]
    pages[2].insert(-1, "Plants live by photo-")
    pages[3].insert(1, "synthesis in light.")
    path = tmp_path / "book.pdf"
    path.write_bytes(pdf_bytes(pages))
    pieces = list(read_pieces(path))
    assert "Plants live by photosynthesis in light.\n" in "".join(piece.text for piece in pieces)
    assert next(piece.page for piece in pieces if piece.text.endswith("photo")) == 3
    assert next(piece.page for piece in pieces if piece.text.startswith("synthesis")) == 4


def test_pages_are_read_no_further_than_four_ahead() -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield f"Page with the text {taken * 7919}.\n"

    pages = without_running_heads(endless())
    for _ in range(10):
        next(pages)
    assert taken <= 10 + 4


@given(st.lists(st.lists(st.sampled_from(["Head", "Head 1", "2", "3", "4", "iv", "word", ""]), max_size=5), max_size=9))
def test_lines_only_ever_go_whole(pages: list[list[str]]) -> None:
    texts = ["\n".join(lines) + "\n" if lines else "" for lines in pages]
    kept = list(without_running_heads(texts))
    assert len(kept) == len(texts)
    for before, after in zip(texts, kept, strict=True):
        rest = iter(before.splitlines())
        assert all(line in rest for line in after.splitlines())  # a subsequence
