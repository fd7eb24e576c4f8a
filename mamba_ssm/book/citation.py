"""Where a passage stands, as people cite it."""

from __future__ import annotations

import re

from mamba_ssm.book.find import Passage

# A section's number and its name: "8.2 Photosynthesis", "8.2. Photosynthesis", "§ 8.2 Photosynthesis".
_NUMBERED = re.compile(r"^(?:§\s*)?(\d{1,3}(?:\.\d{1,3})*)[.:)]?\s+(?=\S)")


def citation(passage: Passage) -> str:
    """Section and page of a passage: "§8.2 Photosynthesis, p. 187". Empty where the book has neither.

    The page is the one printed in the book where its file tells (``Passage.label``), else its number in the file.
    """
    parts = [_NUMBERED.sub(r"§\1 ", passage.section, count=1)] if passage.section else []
    page = passage.label or passage.page
    return ", ".join([*parts, f"p. {page}"] if page is not None else parts)


def place(passage: Passage) -> list[str]:
    """Where a passage lies, for people: its citation, where the book has what to cite, and the characters."""
    cited = " ".join(citation(passage).split())
    return [*([cited] if cited else []), f"characters {passage.start:,}–{passage.end:,}"]
