"""Passages are cited as people cite them: section, and the page that is printed in the book."""

import pytest

from mamba_ssm.book import Passage, citation


@pytest.mark.parametrize(
    ("page", "section", "label", "cited"),
    [
        (203, "8.2 Photosynthesis", "187", "§8.2 Photosynthesis, p. 187"),
        (203, "8.2. Photosynthesis", None, "§8.2 Photosynthesis, p. 203"),
        (9, "Preface", "ix", "Preface, p. ix"),
        (None, "§ 8.2 Photosynthesis", None, "§8.2 Photosynthesis"),
        (None, "Chapter 3. Special Characters", None, "Chapter 3. Special Characters"),
        (None, "1984 was a year", None, "1984 was a year"),
        (None, "8", None, "8"),
        (4, None, None, "p. 4"),
        (None, None, None, ""),
    ],
)
def test_citation(page: int | None, section: str | None, label: str | None, cited: str) -> None:
    assert citation(Passage("text", 0, 4, page, section, 1.0, label)) == cited
