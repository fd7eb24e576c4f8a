"""Books over HTTP: files that are uploaded and read, questions with evidence, and where in the book it stands."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Annotated, Any

import python_multipart  # noqa: F401  FastAPI needs it to take files, and says less clearly that it is missing
from fastapi import APIRouter, Depends, File, Form, Path, Query, Request, Response, UploadFile

from mamba_ssm.book import Shelf, ShelfBook
from mamba_ssm.book.source import sha256_of
from mamba_ssm.server import book_schemas as schemas
from mamba_ssm.server import export
from mamba_ssm.server.problems import Problem, described
from mamba_ssm.server.service import Service, TheService, unless_gone
from mamba_ssm.server.sse import STREAMED, EventStream
from mamba_ssm.server.uploads import Upload, Uploads
from mamba_ssm.text.pdf_page import MAX_WIDTH, draw_page, page_count, word_boxes

router = APIRouter(prefix="/v1")
TEXT_CHARACTERS = 65536
CONTEXT = 400  # characters around a passage, by which equal words on a page are told apart


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


TheUploads = Annotated[Uploads, Depends(_uploads)]


def _book(book_id: Annotated[str, Path(description="As /v1/books lists it.")], uploads: TheUploads) -> ShelfBook:
    for book in uploads.shelf.books():
        if book.id == book_id:
            return book
    raise Problem(404, f"there is no book {book_id!r}: GET /v1/books lists them", code="book_not_found")


TheBook = Annotated[ShelfBook, Depends(_book)]
Start = Annotated[int, Query(ge=0, description=schemas.START)]
End = Annotated[int, Query(ge=0, description=schemas.END)]


def _upload(file_id: Annotated[str, Path(description="As /v1/files lists it.")], uploads: TheUploads) -> Upload:
    upload = uploads.get(file_id)
    if upload is None:
        raise Problem(404, f"there is no file {file_id!r}: GET /v1/files lists them", code="file_not_found")
    return upload


TheUpload = Annotated[Upload, Depends(_upload)]


@router.post("/files", responses=described(400, 401, 413))
def upload_file(
    uploads: TheUploads,
    file: Annotated[UploadFile, File(description="A book, of any format that `mamba-esi ask` reads.")],
    purpose: Annotated[str, Form(description="OpenAI's clients send one; it changes nothing.")] = "user_data",
) -> schemas.File:
    """Send a book. It is read in the background: GET the file to see how far that is."""
    return schemas.File.of(uploads.receive(file.file, file.filename or ""))


@router.get("/files", responses=described(401))
def list_files(uploads: TheUploads) -> schemas.Files:
    """The files that were uploaded, the oldest first."""
    return schemas.Files(data=[schemas.File.of(upload) for upload in uploads.list()])


@router.get("/files/{file_id}", responses=described(401, 404))
def retrieve_file(upload: TheUpload) -> schemas.File:
    """A file, and how far it is read."""
    return schemas.File.of(upload)


@router.delete("/files/{file_id}", responses=described(401, 404, 409))
def delete_file(upload: TheUpload, uploads: TheUploads) -> schemas.DeletedFile:
    """Delete a file, and the book that was read from it."""
    if upload.status == "uploaded":
        raise Problem(409, "the file is being read: wait until it is, and delete it then", code="being_read")
    uploads.delete(upload)
    return schemas.DeletedFile(id=upload.id)


@router.get("/books", responses=described(401))
def list_books(uploads: TheUploads) -> schemas.Books:
    """The books on the shelf, also those that were added by the command line."""
    return schemas.Books(data=[_shelved(book, uploads) for book in uploads.shelf.books()])


@router.get("/books/{book_id}", responses=described(401, 404))
def retrieve_book(book: TheBook, uploads: TheUploads) -> schemas.ShelvedBook:
    """One of them."""
    return _shelved(book, uploads)


def _shelved(book: ShelfBook, uploads: Uploads) -> schemas.ShelvedBook:
    upload = uploads.of(book)
    return schemas.ShelvedBook(
        id=book.id,
        title=book.title,
        tokens=book.tokens,
        characters=book.characters,
        sha256=book.sha256,
        added=book.added,
        pages=pages_of(book),
        file_id=upload.id if upload else None,
    )


@router.get("/books/{book_id}/sections", responses=described(401, 404))
def list_sections(book: TheBook, uploads: TheUploads) -> schemas.Sections:
    """Where the sections of a book begin, in order."""
    sections = uploads.shelf.sections(book.id)
    return schemas.Sections(data=[schemas.SectionStart(**vars(section)) for section in sections])


@router.get("/books/{book_id}/text", responses=described(400, 401, 404))
def read_text(book: TheBook, uploads: TheUploads, start: Start = 0, end: End | None = None) -> schemas.BookText:
    """The book's text, at most 65,536 characters of it."""
    stop = min(book.characters if end is None else end, book.characters)
    if not start <= stop <= start + TEXT_CHARACTERS:
        raise Problem(400, f"ask for 0 to {TEXT_CHARACTERS:,} of the {book.characters:,} characters", param="end")
    return schemas.BookText(start=start, end=stop, text=uploads.shelf.text(book.id, start, stop))


@router.post(
    "/books/{book_id}/ask",
    response_model=schemas.BookAnswer,
    responses={200: STREAMED, **described(400, 401, 404, 408, 413, 429, 503, 504)},
)
async def ask(
    body: schemas.AskRequest, book: TheBook, request: Request, uploads: TheUploads, service: TheService
) -> Response | schemas.BookAnswer:
    """Ask a book. The answer comes with the passages that it is from, by their place in the book's text."""
    if body.stream:
        return EventStream(request.url.path, _answering(body, book, uploads.shelf, service))
    return await unless_gone(request, _answer(body, book, uploads.shelf, service))


async def _answer(body: schemas.AskRequest, book: ShelfBook, shelf: Shelf, service: Service) -> schemas.BookAnswer:
    answer = await service.worker.run(
        lambda: shelf.ask(body.question, [book.id], passages=body.passages), service.settings.timeout
    )
    return schemas.BookAnswer.of(book.id, answer)


async def _answering(
    body: schemas.AskRequest, book: ShelfBook, shelf: Shelf, service: Service
) -> AsyncGenerator[dict[str, Any], None]:
    yield (await _answer(body, book, shelf, service)).model_dump()
    if body.stretches:
        yield (await _windows(body.question, body.stretches, book, shelf, service)).model_dump()


async def _windows(question: str, most: int, book: ShelfBook, shelf: Shelf, service: Service) -> schemas.Windows:
    found = await service.worker.run(lambda: shelf.relevance(book.id, question, most), service.settings.timeout)
    return schemas.Windows.of(book, question, found)


@router.get("/books/{book_id}/windows", responses=described(400, 401, 404, 429, 503, 504))
async def score_windows(
    book: TheBook,
    request: Request,
    uploads: TheUploads,
    service: TheService,
    question: Annotated[str, Query(min_length=1, max_length=schemas.QUESTION_CHARACTERS)],
    stretches: Annotated[int, Query(ge=1, le=2000, description="The most stretches to give.")] = 240,
) -> schemas.Windows:
    """How well every part of a book fits a question: the best score of the windows in each stretch of it."""
    return await unless_gone(request, _windows(question, stretches, book, uploads.shelf, service))


@router.get(
    "/books/{book_id}/pages/{page}.png",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **described(400, 401, 404)},
)
def page_picture(
    book: TheBook, page: int, width: Annotated[int, Query(ge=1, le=MAX_WIDTH, description="In pixels.")] = 1200
) -> Response:
    """A page of a PDF, counted from 1, as a picture."""
    _check_page(book, page)
    # The content of a book never changes under its id.
    headers = {"Cache-Control": "private, max-age=86400"}
    return Response(draw_page(FilePath(book.path), page, width), media_type="image/png", headers=headers)


@router.get("/books/{book_id}/pages/{page}/boxes", responses=described(400, 401, 404))
def passage_boxes(book: TheBook, page: int, uploads: TheUploads, start: Start, end: End) -> schemas.Boxes:
    """Where the words of a passage stand on a page of a PDF: a box for each line."""
    _check_page(book, page)
    if not start <= end <= min(start + schemas.PASSAGE_CHARACTERS, book.characters):
        raise Problem(400, f"ask for 0 to {schemas.PASSAGE_CHARACTERS:,} characters of the book", param="end")
    # What is printed on another page as well is not boxed there.
    begin, stop = uploads.shelf.on_page(book.id, page, max(start - CONTEXT, 0), min(end + CONTEXT, book.characters))
    text = uploads.shelf.text(book.id, begin, stop)
    boxes = word_boxes(FilePath(book.path), page, text, start - begin, end - begin)
    return schemas.Boxes(page=page, boxes=[schemas.PageBox(**box._asdict()) for box in boxes])


def _check_page(book: ShelfBook, page: int) -> None:
    pages = pages_of(book)
    if pages is None:
        raise Problem(404, "the book's file is no PDF, or is not where it was read: there are no pages to draw")
    if not 1 <= page <= pages:
        raise Problem(404, f"there is no page {page}: the book has {pages}", param="page")


def pages_of(book: ShelfBook) -> int | None:
    """The pages of a PDF that can be drawn; None where its file is none, or is gone or another by now."""
    try:
        stat = os.stat(book.path)
        return _pages(book.path, book.sha256, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _pages(path: str, sha256: str, changed: int, size: int) -> int | None:
    """As long as neither its time nor its size changes, a file is not looked at again."""
    return page_count(FilePath(path)) if sha256_of(FilePath(path)) == sha256 else None


@router.post(
    "/export",
    response_class=Response,
    responses={
        200: {"content": {kind: {} for kind in export.MEDIA_TYPES.values()}},
        **described(400, 401, 404, 408, 413),
    },
)
def export_conversation(body: schemas.ExportRequest, uploads: TheUploads) -> Response:
    """A conversation with its citations as Markdown, or the books that it cites as BibTeX or CSL JSON."""
    books = {turn.book_id: _book(turn.book_id, uploads) for turn in body.turns}

    def quote(key: str, start: int, end: int) -> str:
        if not start <= end <= start + schemas.PASSAGE_CHARACTERS:
            raise Problem(400, f"a passage has 0 to {schemas.PASSAGE_CHARACTERS:,} characters", param="turns")
        return uploads.shelf.text(key, start, end)

    written = {
        "markdown": lambda: export.markdown(body.turns, books, quote),
        "bibtex": lambda: export.bibtex(books.values()),
        "csl-json": lambda: export.csl_json(books.values()),
    }[body.format]()
    return Response(written, media_type=export.MEDIA_TYPES[body.format])
