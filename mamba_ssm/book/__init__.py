"""Books: read one, ask it questions, get answers with the passages that they come from."""

from mamba_ssm.book.answers import Answer, Seconds
from mamba_ssm.book.book import Book, load_book, open_book, read
from mamba_ssm.book.engine import Engine
from mamba_ssm.book.find import Passage
from mamba_ssm.book.heat import Stretch
from mamba_ssm.book.library import Asked, Section, ShelfBook
from mamba_ssm.book.progress import bar
from mamba_ssm.book.shelf import Shelf, books_in, shelf_folder
from mamba_ssm.book.source import BookInfo

__all__ = [
    "Answer",
    "Asked",
    "Book",
    "BookInfo",
    "Engine",
    "Passage",
    "Seconds",
    "Section",
    "Shelf",
    "ShelfBook",
    "Stretch",
    "bar",
    "books_in",
    "load_book",
    "open_book",
    "read",
    "shelf_folder",
]
