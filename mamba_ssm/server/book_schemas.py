"""What the routes of books take and give."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mamba_ssm import book
from mamba_ssm.server.uploads import Upload

QUESTION_CHARACTERS = 4096
PASSAGE_CHARACTERS = 16384
START, END = "The first character, in the text of /v1/books/{id}/text.", "The character after the last."


class ReadingProgress(BaseModel):
    """How far a file is read."""

    tokens: int
    tokens_per_second: float
    share: float | None = Field(description="0 to 1; null where the size of the file does not tell how long it is.")


class File(BaseModel):
    """A file that was uploaded, as OpenAI describes one, and how far it is read."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str = "user_data"
    status: Literal["uploaded", "processed", "error"] = Field(description="`uploaded` until it is read.")
    status_details: str | None = Field(description="What is wrong, where status is `error`.")
    book_id: str | None = Field(description="The book that it is on the shelf, once it is read.")
    progress: ReadingProgress

    @classmethod
    def of(cls, upload: Upload) -> File:
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=upload.created,
            filename=upload.path.name,
            status=upload.status,
            status_details=upload.details,
            book_id=upload.book,
            progress=ReadingProgress(
                tokens=upload.tokens, tokens_per_second=upload.tokens_per_second, share=upload.share
            ),
        )


class Files(BaseModel):
    object: Literal["list"] = "list"
    data: list[File]
    has_more: Literal[False] = False  # OpenAI's clients ask for more where it is missing


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ShelvedBook(BaseModel):
    """A book on the shelf."""

    id: str
    object: Literal["book"] = "book"
    title: str
    tokens: int
    characters: int
    sha256: str
    added: str
    pages: int | None = Field(description="Of a PDF whose file is still there, so that its pages can be drawn.")
    file_id: str | None = Field(description="The upload that it was read from.")


class Books(BaseModel):
    object: Literal["list"] = "list"
    data: list[ShelvedBook]


class BookText(BaseModel):
    """Characters of a book's text."""

    start: int
    end: int
    text: str


class SectionStart(BaseModel):
    """Where a section begins."""

    start: int
    title: str
    page: int | None


class Sections(BaseModel):
    object: Literal["list"] = "list"
    data: list[SectionStart]


class AskRequest(BaseModel):
    """A question to a book."""

    model_config = ConfigDict(extra="forbid")
    question: str = Field(min_length=1, max_length=QUESTION_CHARACTERS)
    passages: int = Field(8, ge=0, le=64, description="How many passages of evidence to give.")
    stretches: int = Field(
        240, ge=0, le=2000, description="In a stream: the most stretches of the book to score after the answer."
    )
    stream: bool = Field(
        False, description='Events: one of type "answer", then one of type "windows" with the scores of the whole book.'
    )


class Evidence(BaseModel):
    """A passage of a book: ``text`` is characters start:end of its text."""

    book_id: str
    text: str
    start: int
    end: int
    page: int | None
    section: str | None
    score: float
    citation: str = Field(description='As people cite it: "§8.2 Photosynthesis, p. 187".')


class BookAnswer(BaseModel):
    """An answer with its evidence, the best passage first."""

    type: Literal["answer"] = "answer"
    book_id: str
    question: str
    answer: str
    told: bool = Field(description="False where no passage fits the question as those do that hold an answer.")
    confidence: float = Field(description="0 to 1; see docs/cli.md.")
    start: int | None = Field(description="Where the book says so; null where the model made it up from the passages.")
    end: int | None
    evidence: list[Evidence]

    @classmethod
    def of(cls, key: str, answer: book.Answer) -> BookAnswer:
        return cls(
            book_id=key,
            question=answer.question,
            answer=answer.text,
            told=answer.told,
            confidence=answer.confidence,
            start=answer.start,
            end=answer.end,
            evidence=[
                Evidence(
                    book_id=p.book or key,
                    text=p.text,
                    start=p.start,
                    end=p.end,
                    page=p.page,
                    section=p.section,
                    score=p.score,
                    citation=book.citation(p),
                )
                for p in answer.evidence
            ],
        )


class Stretch(BaseModel):
    """Characters start:end of the book, from where its best window begins to where that of the next stretch does."""

    start: int
    end: int
    page: int | None
    section: str | None
    score: float


class Windows(BaseModel):
    """How well every part of a book fits a question."""

    type: Literal["windows"] = "windows"
    book_id: str
    question: str
    windows: list[Stretch]

    @classmethod
    def of(cls, asked: book.ShelfBook, question: str, found: book.Relevance) -> Windows:
        starts = [0, *found.positions[1:].tolist()]
        parts = zip(starts, [*starts[1:], asked.characters], found.marks, found.scores.tolist(), strict=True)
        stretches = [
            Stretch(start=start, end=end, page=mark.page, section=mark.section, score=score)
            for start, end, mark, score in parts
        ]
        return cls(book_id=asked.id, question=question, windows=stretches)


class PageBox(BaseModel):
    """A rectangle on a page, in fractions of its width and height from its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


class Boxes(BaseModel):
    page: int
    boxes: list[PageBox]


class CitedPassage(BaseModel):
    """A passage by its place. The export takes its words from the book."""

    start: int = Field(ge=0, description=START)
    end: int = Field(ge=0, description=END)
    citation: str = Field("", max_length=1000)


class Turn(BaseModel):
    """A question with its answer."""

    book_id: str
    question: str = Field(max_length=QUESTION_CHARACTERS)
    answer: str = Field(max_length=65536)
    told: bool = True
    confidence: float | None = None
    start: int | None = None
    end: int | None = None
    evidence: Annotated[list[CitedPassage], Field(max_length=64)] = []


class ExportRequest(BaseModel):
    """A conversation to be written down."""

    format: Literal["markdown", "bibtex", "csl-json"]
    turns: Annotated[list[Turn], Field(min_length=1, max_length=200)]
