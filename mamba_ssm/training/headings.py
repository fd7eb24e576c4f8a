"""Headings of manuals, asked as questions: what they head is to be found, in a text without them.

They ask the search what a passage is about, where SQuAD's questions ask for one fact in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from mamba_ssm.training.squad import Article, Paragraph, Question

HEADING_WORDS, HEADING_CHARACTERS = 3, 150  # at least, and at most
SECTION_CHARACTERS = 150, 3000  # fewer tell too little; more are left out
ARTICLE_CHARACTERS = 30_000
_NUMBER = re.compile(r"((Chapter|Appendix|Part|Section) \w+(\.\d+)*|([A-Z]\.)?\d+(\.\d+)*)[.:]?\s+")


def heading_articles(title: str, sections: Iterable[tuple[str, str]]) -> list[Article]:
    """Sections (heading, text) of a manual, in order -> articles of some ARTICLE_CHARACTERS.

    Asked are headings of a few words, of a section that is long enough, if no other section has the same.
    """
    least, most = SECTION_CHARACTERS
    listed = [(without_number(heading), text.strip()[:most]) for heading, text in sections if text.strip()]
    times = Counter(heading.casefold() for heading, _ in listed)
    articles: list[Article] = []
    size = ARTICLE_CHARACTERS
    for number, (heading, text) in enumerate(listed):
        if size >= ARTICLE_CHARACTERS:
            articles.append(Article(title, []))
            size = 0
        words = len(heading.split())
        asked = words >= HEADING_WORDS and len(heading) <= HEADING_CHARACTERS and times[heading.casefold()] == 1
        questions = [Question(f"{title}-{number}", heading, [(0, text)])] if asked and len(text) >= least else []
        articles[-1].paragraphs.append(Paragraph(text, questions))
        size += len(text)
    return articles


def without_number(heading: str) -> str:
    """A heading without the number before it, as in "A.1.2 What is x?", "Chapter 3. The y" and "37 The z"."""
    number = _NUMBER.match(heading)
    return heading[number.end() :] if number else heading
