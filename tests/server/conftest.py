"""Servers of a tiny model, that many tests share."""

import pytest
from serving import serving

from mamba_ssm.book import Engine, Shelf, read


@pytest.fixture(scope="session")
def engine(tiny_model):
    return Engine.load(tiny_model, "cpu")


@pytest.fixture(scope="session")
def book(engine, book_path):
    with read(book_path, engine, progress=False) as book:
        yield book


@pytest.fixture(scope="session")
def plain(engine):
    """A server of the model alone."""
    with serving(engine) as served:
        yield served


@pytest.fixture(scope="session")
def with_book(engine, book):
    """A server with a book."""
    with serving(engine, book) as served:
        yield served


@pytest.fixture(scope="session")
def with_shelf(engine, book_path, tmp_path_factory):
    """A server with a shelf that a book is on."""
    with Shelf.open(tmp_path_factory.mktemp("shelf"), engine) as shelf, serving(engine, shelf=shelf) as served:
        shelf.add(book_path)
        yield served
