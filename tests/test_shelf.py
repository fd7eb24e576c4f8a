"""Books that are kept on a shelf, and asked together."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from mamba_ssm.book import Engine, Shelf, open_book, shelf_folder
from mamba_ssm.errors import BookError, MambaESIError, QuestionError, ShelfError

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"


@pytest.fixture(scope="module")
def engine(tiny_model):
    return Engine.load(tiny_model)


@pytest.fixture
def shelf(engine, tmp_path):
    with Shelf.open(tmp_path / "shelf", engine) as opened:
        yield opened


@pytest.fixture
def texts(tmp_path, book_text):
    """Three books: the garden, and two others."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "garden.md").write_text(book_text, encoding="utf-8")
    (folder / "sea.md").write_text(book_text.replace("trees", "sails").replace("gardener", "sailor"), encoding="utf-8")
    (folder / "short.txt").write_text("Pelicans dance under green moons.")
    return [folder / "garden.md", folder / "sea.md", folder / "short.txt"]


def said(answer):
    """All of an answer but times and names of books."""
    found = answer.to_dict()
    return {key: value for key, value in found.items() if key not in ("seconds", "evidence")} | {
        "evidence": [{name: value for name, value in p.items() if name != "book"} for p in found["evidence"]]
    }


def files(shelf):
    return sorted(file.name for file in (shelf.folder / "books").iterdir())


def files_of(books):
    return sorted(f"{book.file}{suffix}" for book in books for suffix in (".esi", ".safetensors"))


def test_one_book_answers_as_it_does_alone(shelf, engine, texts):
    book = shelf.add(texts[0])
    questions = [QUESTION, "chapter?", "Where did gardener number 7 plant trees? " * 5]
    for question in questions:
        for options in ({}, {"top_k": 2, "passages": 3}):
            alone = open_book(texts[0], engine).ask(question, **options)
            found = shelf.ask(question, **options)
            assert said(found) == said(alone)
            assert found.told == alone.told
            assert {passage.book for passage in found.evidence} == {book.id}


def test_a_checkpoint_without_esi_weights_answers_alike(plain_model, tmp_path, texts):
    engine = Engine.load(plain_model)
    with Shelf.open(tmp_path / "plain", engine) as shelf:
        shelf.add(texts[0])
        alone = open_book(texts[0], engine).ask(QUESTION, max_new_tokens=4)
        assert said(shelf.ask(QUESTION, max_new_tokens=4)) == said(alone)
        shelf.add(texts[1])
        answer = shelf.ask(QUESTION, max_new_tokens=4)
        assert answer.book.path in map(str, texts)
        assert {passage.book for passage in answer.evidence} <= {book.id for book in shelf.books()}


def test_evidence_is_a_slice_of_the_book_that_it_names(shelf, texts):
    for path in texts[:2]:
        path.write_text(path.read_text(encoding="utf-8")[:5000], encoding="utf-8")
    books = {book.id: book for book in map(shelf.add, texts)}
    answer = shelf.ask("Which sailor planted 42 sails, and where do pelicans dance?", passages=256)
    assert {passage.book for passage in answer.evidence} == set(books)
    for passage in answer.evidence:
        assert passage.text == shelf.text(passage.book, passage.start, passage.end)
    scores = [passage.score for passage in answer.evidence]
    assert scores == sorted(scores, reverse=True)
    (said_by,) = [book for book in books.values() if book.path == answer.book.path]
    assert answer.text == shelf.text(said_by.id, answer.start, answer.end)
    assert answer.book.sha256 == said_by.sha256


def test_some_books_are_asked_alone(shelf, texts):
    books = [shelf.add(path) for path in texts]
    for asked in ([0], [1], [2], [1, 2]):
        answer = shelf.ask(QUESTION, books=[books[number].id for number in asked])
        assert {passage.book for passage in answer.evidence} <= {books[number].id for number in asked}
        assert answer.book.path in [str(texts[number]) for number in asked]
    assert said(shelf.ask(QUESTION, books=["sea"])) == said(shelf.ask(QUESTION, books=[books[1].id, books[1].id]))


def test_text_and_sections(shelf, texts, book_text):
    book = shelf.add(texts[0])
    assert shelf.text(book.id) == book_text
    assert book.characters == len(book_text)
    for start, end in [(0, 10), (7_000, 21_000), (len(book_text) - 5, len(book_text) + 5), (9, 9)]:
        assert shelf.text(book.id, start, end) == book_text[start:end]
    sections = shelf.sections(book.id)
    assert [section.title for section in sections] == [f"Chapter {n}" for n in range(1, 9)]
    assert all(book_text[section.start :].startswith(f"# {section.title}") for section in sections)
    assert all(section.page is None for section in sections)


def test_adding_again_does_nothing(shelf, texts, tmp_path):
    book = shelf.add(texts[0])
    before = files(shelf)
    assert shelf.add(texts[0]) == book
    copy = tmp_path / "copy.md"
    copy.write_bytes(texts[0].read_bytes())
    assert shelf.add(copy) == book
    assert shelf.books() == [book]
    assert files(shelf) == before


def test_a_changed_file_is_read_again(shelf, texts):
    first, other = shelf.add(texts[0]), shelf.add(texts[1])
    texts[0].write_text("Nothing grows here but thistles.")
    second = shelf.add(texts[0])
    assert shelf.books() == [other, second]
    assert shelf.text(second.id) == "Nothing grows here but thistles."
    assert not any(name.startswith(first.id) for name in files(shelf))
    texts[0].write_bytes(texts[1].read_bytes())  # what another book says already
    assert shelf.add(texts[0]) == other
    assert shelf.books() == [other]


def test_a_book_read_with_another_model(shelf, texts, other_model, tmp_path):
    book = shelf.add(texts[0])
    with Shelf.open(shelf.folder, other_model) as other:
        for use in (lambda: other.ask(QUESTION), lambda: other.text(book.id)):
            with pytest.raises(ShelfError, match="another model"):
                use()
        again = other.add(texts[0])
        assert other.books() == [again]
        assert other.ask(QUESTION).text
        assert len({name.split(".")[0] for name in files(other)}) == 1


def test_removing(shelf, texts):
    first, second = shelf.add(texts[0]), shelf.add(texts[1])
    assert shelf.remove(first.id[:6]) == first
    assert shelf.books() == [second]
    assert {name.split(".")[0] for name in files(shelf)} == {second.file}
    assert shelf.sections(second.id)
    with pytest.raises(ShelfError, match="shelf list"):
        shelf.text(first.id)


def test_books_by_id_title_and_prefix(shelf, texts, tmp_path):
    books = [shelf.add(path) for path in texts]
    for key in (books[0].id, books[0].id[:9], "garden", "GARDEN", "gar"):
        assert shelf.book(key) == books[0]
    with pytest.raises(ShelfError, match="more than one book"):
        shelf.book("s")
    for key in ("", "nothing"):
        with pytest.raises(ShelfError, match="shelf list"):
            shelf.book(key)


def test_what_was_asked_is_kept(shelf, texts):
    book = shelf.add(texts[0])
    answers = [shelf.ask(question) for question in (QUESTION, "Where?", "lone \ud800 surrogate?")]
    asked = shelf.history(2)
    assert [entry.answer for entry in asked] == [json.loads(json.dumps(a.to_dict())) for a in answers[:0:-1]]
    assert asked[0].books == [book.id]
    shelf.remove(book.id)
    assert len(shelf.history()) == 3


def test_questions_that_cannot_be_asked(shelf, texts):
    with pytest.raises(ShelfError, match="shelf add"):
        shelf.ask("Who?")
    shelf.add(texts[2])
    for question in ("", "word " * 2000):
        with pytest.raises(QuestionError):
            shelf.ask(question)
    assert shelf.history() == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.txt", None),
        ("empty.txt", b""),
        ("noise.bin", random.Random(0).randbytes(5000)),
        ("b.pdf", b"%PDF-1.7"),
    ],
)
def test_a_book_that_cannot_be_read_leaves_nothing(shelf, tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BookError):
        shelf.add(path)
    assert shelf.books() == []
    assert files(shelf) == []


def test_a_saved_book_is_refused(shelf, engine, texts, tmp_path):
    with open_book(texts[0], engine).stored() as book:
        book.save(tmp_path / "saved.esi")
    with pytest.raises(BookError, match="add the book itself"):
        shelf.add(tmp_path / "saved.esi")


def test_a_folder_is_one_book(shelf, tmp_path):
    (tmp_path / "novel").mkdir()
    for name, text in (("chapter 2", "Then the pelican fell ill."), ("chapter 10", "It died.")):
        (tmp_path / "novel" / f"{name}.txt").write_text(text)
    book = shelf.add(tmp_path / "novel")
    assert book.title == "novel"
    assert shelf.text(book.id).split("\n")[0] == "Then the pelican fell ill."
    assert shelf.add(tmp_path / "novel") == book
    (tmp_path / "novel" / "chapter 11.txt").write_text("Or did it?")
    assert shelf.add(tmp_path / "novel") != book
    assert len(shelf.books()) == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there all names of files are Unicode")
def test_a_name_that_is_no_unicode(shelf, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("A book about coffee, and about tea.")
    book = shelf.add(path)
    assert book.title == "caf\ufffd"
    assert shelf.add(path) == book
    assert shelf.ask("What is it about?").book.path == book.path


def test_where_the_shelf_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBA_ESI_SHELF", str(tmp_path / "here"))
    assert shelf_folder() == tmp_path / "here"
    monkeypatch.delenv("MAMBA_ESI_SHELF")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert shelf_folder().name == "shelf"
    if sys.platform.startswith("linux"):
        assert shelf_folder() == tmp_path / "mamba-esi" / "shelf"


def test_a_folder_that_cannot_be_a_shelf(tmp_path):
    (tmp_path / "file").write_text("I am a file.")
    with pytest.raises(ShelfError, match="no shelf can be there"):
        Shelf.open(tmp_path / "file")
    (tmp_path / "shelf.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ShelfError, match="cannot be used"):
        Shelf.open(tmp_path)


def test_a_shelf_of_a_newer_version(shelf):
    with sqlite3.connect(shelf.folder / "shelf.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ShelfError, match="another version"):
        Shelf.open(shelf.folder)


@pytest.mark.parametrize("cut", [0, 100, 5000])
def test_damaged_files_are_found_out(shelf, engine, texts, cut):
    book = shelf.add(texts[0])
    for file in (shelf.folder / "books").iterdir():
        file.write_bytes(file.read_bytes()[:cut])
    with Shelf.open(shelf.folder, engine) as again:
        assert again.books() == [book]
        with pytest.raises(MambaESIError):
            again.ask(QUESTION)


ADD = """
import sys
from mamba_ssm.book import Engine, Shelf
engine = Engine.load(sys.argv[2])
print("ready", flush=True)
with Shelf.open(sys.argv[1], engine) as shelf:
    for path in sys.argv[3:]:
        shelf.add(path)
        print("added", path, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent otherwise elsewhere")
@pytest.mark.parametrize("times", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_killed_at_any_moment(tiny_model, engine, book_text, tmp_path, times):
    """What the process said was added is there, whole; the one that it was at may be; and no other file is left."""
    paths = [tmp_path / f"book{number}.md" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_text(f"Book {number}. " + book_text, encoding="utf-8")
    drawn = random.Random(0)
    cut_short = 0
    for attempt in range(times):
        folder = tmp_path / f"shelf{attempt}"
        command = [sys.executable, "-c", ADD, str(folder), tiny_model, *map(str, paths)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            lines = [process.stdout.readline() for _ in range(drawn.randrange(len(paths) - 1))]
            time.sleep(drawn.uniform(0, 0.4))
            process.kill()
            added = [*lines, *process.stdout]
        with Shelf.open(folder, engine) as shelf:
            books = shelf.books()
            assert [book.path for book in books] in (list(map(str, paths[:n])) for n in (len(added), len(added) + 1))
            assert files(shelf) == sorted(
                f"{book.file}{suffix}" for book in books for suffix in (".esi", ".safetensors")
            )
            for number, book in enumerate(books):
                assert shelf.text(book.id) == f"Book {number}. " + book_text
            cut_short += len(books) < len(paths)
            if attempt % 20 == 0:
                assert len({shelf.add(path).id for path in paths}) == len(shelf.books()) == len(paths)
                assert shelf.ask(QUESTION).text
    assert cut_short


def test_two_processes_add_at_once(tiny_model, engine, book_text, tmp_path):
    paths = [tmp_path / f"book{number}.md" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text(f"Book {number}. " + book_text, encoding="utf-8")
    orders = [paths, paths[::-1]]
    commands = [[sys.executable, "-c", ADD, str(tmp_path / "shelf"), tiny_model, *map(str, order)] for order in orders]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait(200) for process in processes] == [0, 0]
    with Shelf.open(tmp_path / "shelf", engine) as shelf:
        books = shelf.books()
        assert sorted(book.path for book in books) == sorted(map(str, paths))
        assert files(shelf) == files_of(books)
        assert all(shelf.text(book.id, 0, 5) == "Book " for book in books)


def test_files_of_no_book_are_swept_unless_someone_adds_one(shelf, engine, texts):
    book = shelf.add(texts[0])
    orphan = shelf.folder / "books" / "0123456789abcdef-0123.esi"
    orphan.write_bytes(b"half a book")
    with shelf._library.adding():
        Shelf.open(shelf.folder, engine).close()
        assert orphan.exists()
    with Shelf.open(shelf.folder, engine) as again:
        assert not orphan.exists()
        assert again.text(book.id)


def test_threads_share_a_shelf(shelf, texts):
    shelf.add(texts[0])
    alone = said(shelf.ask(QUESTION, books=["garden"]))
    failures = []

    def work(number):
        try:
            for _ in range(3):
                assert said(shelf.ask(QUESTION, books=["garden"])) == alone
                shelf.add(texts[1 + number % 2])
                assert shelf.text("garden", 0, 5)
        except Exception as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(book.title for book in shelf.books()) == ["garden", "sea", "short"]
    assert {name.split(".")[0] for name in files(shelf)} == {book.file for book in shelf.books()}
    assert len(shelf.history(100)) == 13


def test_relevance_is_the_books_own(shelf, engine, texts):
    book = shelf.add(texts[0])
    alone = open_book(texts[0], engine).relevance(QUESTION, 50)
    kept = shelf.relevance(book.id, QUESTION, 50)
    assert kept.positions.tolist() == alone.positions.tolist()
    assert kept.scores == pytest.approx(alone.scores, abs=1e-3)


@pytest.fixture
def two_passes(monkeypatch):
    """Search in two passes, however few the books."""
    from mamba_ssm.book import index

    monkeypatch.setattr(index, "EXACT_TOKENS", 0)
    return index


def found(answer):
    """The passages by place, and the answer's own place; scores alone depend on the order of additions."""
    passages = [(p.text, p.start, p.page, p.section, p.book) for p in answer.evidence]
    return passages, answer.text, answer.start, answer.end, answer.book


@pytest.mark.parametrize("question", [QUESTION, "Pelicans?", "Where did sailor number 7 plant sails? " * 5])
def test_two_passes_find_what_one_finds_without_headings(shelf, engine, texts, question, monkeypatch):
    from mamba_ssm.book import index

    monkeypatch.setattr(engine, "headings", lambda titles, under: None)
    for path in texts:
        shelf.add(path)
    query = engine.question(question).query
    for titles in (["garden", "sea", "short"], ["garden"], ["short"], ["sea", "short"]):
        books = [shelf.book(title) for title in titles]
        once, counts = shelf.search(query, books, 16)
        assert counts is not None
        assert counts.sum() == sum(book.tokens for book in books)
        with monkeypatch.context() as patch:
            patch.setattr(index, "EXACT_TOKENS", 0)
            twice, _ = shelf.search(query, books, 16)
        assert [(hit.window.book, hit.window.first, hit.window.text) for hit in twice] == [
            (hit.window.book, hit.window.first, hit.window.text) for hit in once
        ]
        assert [hit.score for hit in twice] == pytest.approx([hit.score for hit in once], abs=1e-3)
        for one, other in zip(once, twice, strict=True):
            np.testing.assert_allclose(other.matches, one.matches, atol=1e-5)


def test_the_first_pass_is_exact_for_keys_that_depend_on_the_token_alone(plain_model, texts, tmp_path, monkeypatch):
    from mamba_ssm.book import index

    with Shelf.open(tmp_path / "plain", plain_model) as shelf:
        for path in texts[:2]:
            shelf.add(path)
        once = shelf.ask(QUESTION, top_k=2, passages=4, max_new_tokens=1)
        monkeypatch.setattr(index, "EXACT_TOKENS", 0)
        monkeypatch.setattr(index, "CANDIDATES", 12)
        assert found(shelf.ask(QUESTION, top_k=2, passages=4, max_new_tokens=1)) == found(once)


def test_the_second_pass_has_the_books_own_keys(shelf, engine, texts):
    from mamba_ssm.book.index import Index, MappedKeys

    book = shelf.add(texts[0])
    stem = shelf.folder / "books" / book.file
    with shelf.open_book(book.id) as opened:
        keys = torch.cat([keys.values() for _, keys in opened._source.blocks()])
    index = Index.load(stem.with_suffix(".safetensors"), book.tokens, engine.tokenizer.vocab_size)
    halves = np.array([0, 1, 100, 191, 192, len(keys) // 32 - 1, len(keys) // 32])
    with MappedKeys(stem.with_suffix(".esi"), index, len(keys), engine.width) as mapped:
        own = mapped.halves(halves, 32).values().unflatten(0, (-1, 32))
    for half, rows in zip(halves.tolist()[:-1], own, strict=False):
        assert torch.equal(rows, keys[32 * half : 32 * half + 32])
    assert not own[-1].any()


@pytest.mark.parametrize("suffix", [".esi", ".safetensors"])
@pytest.mark.parametrize("cut", [0, 100, 5000])
def test_two_passes_find_damage_out(shelf, engine, texts, two_passes, suffix, cut):
    shelf.add(texts[0])
    (file,) = (shelf.folder / "books").glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:cut])
    with Shelf.open(shelf.folder, engine) as again, pytest.raises(MambaESIError):
        again.ask(QUESTION)
