"""Books over HTTP, against a real server with a shelf."""

import io
import json
import re
import time

import httpx
import pytest
from make_books import pdf_bytes
from serving import serving

from mamba_ssm.book import Shelf
from mamba_ssm.server.uploads import safe_name

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"
PAGES = [
    ["The old oak stands at the north gate.", "It is nine hundred years old."],
    ["The miller grinds rye on every second Friday,", "and sells the chloro-", "plast green flour in May."],
]


@pytest.fixture(scope="module")
def served(engine, tmp_path_factory):
    with Shelf.open(tmp_path_factory.mktemp("shelf"), engine) as shelf, serving(engine, shelf=shelf) as served:
        yield served


@pytest.fixture
def http(served):
    return served.http


def read(http, name, content):
    """Upload a book, wait until it is read, and return what its file is then."""
    answer = http.post("/v1/files", files={"file": (name, content)})
    assert answer.status_code == 200, answer.text
    return wait(http, answer.json()["id"])


def wait(http, key):
    for _ in range(600):
        file = http.get(f"/v1/files/{key}").json()
        if file["status"] != "uploaded":
            return file
        time.sleep(0.05)
    raise AssertionError(file)


@pytest.fixture(scope="module")
def garden(served, book_text):
    return read(served.http, "garden.md", book_text.encode())["book_id"]


@pytest.fixture(scope="module")
def mill(served):
    return read(served.http, "mill.pdf", pdf_bytes(PAGES, [("The gate", 0), ("The mill", 1)]))["book_id"]


def text_of(http, book, start, end):
    return http.get(f"/v1/books/{book}/text", params={"start": start, "end": end}).json()["text"]


def events(http, path, **body):
    with http.stream("POST", path, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_openais_client_uploads_lists_and_deletes_files(served):
    files = served.openai().files
    made = files.create(file=("letters.txt", b"Dear Ada, the ship sails in May. Yours, Ben."), purpose="user_data")
    done = wait(served.http, made.id)
    assert (done["status"], done["filename"], done["bytes"]) == ("processed", "letters.txt", 44)
    assert made.id in [file.id for file in files.list()]
    assert files.retrieve(made.id).status == "processed"
    book = done["book_id"]
    assert served.http.get(f"/v1/books/{book}").json()["title"] == "letters"
    assert files.delete(made.id).deleted
    assert made.id not in [file.id for file in files.list()]
    assert served.http.get(f"/v1/books/{book}").status_code == 404


def test_reading_reports_tokens_and_ends_with_the_whole_book(http, garden, book_text):
    (file,) = [file for file in http.get("/v1/files").json()["data"] if file["book_id"] == garden]
    book = http.get(f"/v1/books/{garden}").json()
    assert file["progress"]["tokens"] == book["tokens"]
    assert file["progress"]["tokens_per_second"] > 0
    assert book["characters"] == len(book_text)
    assert (book["pages"], book["file_id"]) == (None, file["id"])


def test_the_same_content_is_the_same_file(http, garden, book_text):
    before = http.get("/v1/files").json()
    again = read(http, "another name.md", book_text.encode())
    assert again["book_id"] == garden
    assert http.get("/v1/files").json() == before


def test_a_file_that_is_no_book_says_why_and_not_where_the_server_keeps_it(http, served):
    file = read(http, "broken.pdf", b"%PDF-1.4 nonsense")
    assert file["status"] == "error"
    assert file["status_details"].startswith("broken.pdf: a damaged PDF")
    assert file["book_id"] is None
    assert http.delete(f"/v1/files/{file['id']}").status_code == 200
    assert http.get(f"/v1/files/{file['id']}").status_code == 404


def test_a_larger_upload_is_refused_with_and_without_a_length(engine, tmp_path):
    def chunks():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.txt"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 1000

    with Shelf.open(tmp_path, engine) as shelf, serving(engine, shelf=shelf, max_upload=20_000) as small:
        told = small.http.post("/v1/files", files={"file": ("big.txt", b"x" * 40_000)})
        head = {"Content-Type": "multipart/form-data; boundary=b"}
        untold = small.http.post("/v1/files", content=chunks(), headers=head)
        assert [told.status_code, untold.status_code] == [413, 413]
        assert small.http.get("/v1/files").json()["data"] == []
        assert not any(shelf.folder.joinpath("uploads").iterdir())


def test_an_upload_from_another_pages_origin_is_refused(http):
    answer = http.post("/v1/files", files={"file": ("a.txt", b"a")}, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("book.pdf", "book.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\War and Peace.epub", "War and Peace.epub"),
        ("..", "book"),
        ("", "book"),
        (".htaccess", "htaccess"),
        ("con.txt", "book con.txt"),
        ("a\x00b\n\x1b[31m.md", "ab[31m.md"),
        ("what? <is> it:.md", "what is it.md"),
        ("eman\u202edp.fdp", "emandp.fdp"),
        ("Zu\u0308rich.txt", "Zürich.txt"),
    ],
)
def test_names_of_files_are_made_safe(name, safe):
    assert safe_name(name) == safe


def test_a_name_is_short_enough_for_any_file_system():
    safe = safe_name("ü" * 500 + ".pdf")
    assert len(safe.encode()) <= 130
    assert safe.endswith("ü.pdf")


def test_answers_come_with_passages_that_are_slices_of_the_text(http, garden):
    answer = http.post(f"/v1/books/{garden}/ask", json={"question": QUESTION, "passages": 5}).json()
    assert (answer["question"], answer["book_id"], len(answer["evidence"])) == (QUESTION, garden, 5)
    for passage in answer["evidence"]:
        assert text_of(http, garden, passage["start"], passage["end"]) == passage["text"]
        assert passage["section"].startswith("Chapter")
    assert text_of(http, garden, answer["start"], answer["end"]) == answer["answer"]


def test_a_stream_gives_the_answer_and_then_the_scores_of_the_book(http, garden):
    whole = http.post(f"/v1/books/{garden}/ask", json={"question": QUESTION}).json()
    answer, windows = events(http, f"/v1/books/{garden}/ask", question=QUESTION, stream=True, stretches=50)
    assert answer == whole
    assert windows["type"] == "windows"
    alone = http.get(f"/v1/books/{garden}/windows", params={"question": QUESTION, "stretches": 50}).json()
    assert alone == windows
    stretches = windows["windows"]
    assert 25 <= len(stretches) <= 50
    assert (stretches[0]["start"], stretches[-1]["end"]) == (0, http.get(f"/v1/books/{garden}").json()["characters"])


def test_a_stream_tells_what_is_wrong_with_a_question(http, garden):
    (problem,) = events(http, f"/v1/books/{garden}/ask", question="   ", stream=True)
    assert problem["status"] == 400
    assert "empty" in problem["error"]["message"]


def test_text_is_given_in_parts(http, garden, book_text):
    assert text_of(http, garden, 10, 500) == book_text[10:500]
    assert text_of(http, garden, len(book_text) - 5, len(book_text) + 100) == book_text[-5:]
    for start, end in ((5, 4), (0, 10**6), (len(book_text) + 1, len(book_text) + 2)):
        answer = http.get(f"/v1/books/{garden}/text", params={"start": start, "end": end})
        # A book may be short enough to be given whole.
        assert answer.status_code == (200 if (start, end) == (0, 10**6) and len(book_text) <= 65536 else 400)


def test_sections(http, garden, mill, book_text):
    found = http.get(f"/v1/books/{garden}/sections").json()["data"]
    assert [section["title"] for section in found] == [f"Chapter {n}" for n in range(1, 9)]
    assert all(book_text[section["start"] :].startswith("# Chapter") for section in found)
    assert [(s["title"], s["page"]) for s in http.get(f"/v1/books/{mill}/sections").json()["data"]] == [
        ("The gate", 1),
        ("The mill", 2),
    ]


def test_pages_of_a_pdf_are_drawn_and_passages_found_on_them(http, mill):
    book = http.get(f"/v1/books/{mill}").json()
    assert book["pages"] == 2
    picture = http.get(f"/v1/books/{mill}/pages/2.png", params={"width": 300})
    assert picture.headers["content-type"] == "image/png"
    assert picture.content[:4] == b"\x89PNG"
    text = text_of(http, mill, 0, book["characters"])
    start = text.index("chloroplast")
    where = {"start": start, "end": start + len("chloroplast green flour")}
    first, second = http.get(f"/v1/books/{mill}/pages/2/boxes", params=where).json()["boxes"]
    assert 0 < first["top"] < first["bottom"] < second["bottom"] < 0.3
    assert first["left"] > second["left"]  # the word is divided: it ends the line above
    assert http.get(f"/v1/books/{mill}/pages/1/boxes", params=where).json()["boxes"] == []


def test_what_is_printed_on_two_pages_is_boxed_on_the_passages_own(http):
    lines = ["The bell rang twice for Ada.", "Nobody came."]
    book = read(http, "bells.pdf", pdf_bytes([[*lines, "One"], [*lines, "Two"]]))["book_id"]
    text = text_of(http, book, 0, 100)
    where = {"start": text.rindex("The bell"), "end": text.rindex("came")}
    boxes = [http.get(f"/v1/books/{book}/pages/{page}/boxes", params=where).json()["boxes"] for page in (1, 2)]
    assert [len(found) for found in boxes] == [0, 2]


def test_pages_that_are_not_there(http, garden, mill):
    assert http.get(f"/v1/books/{garden}/pages/1.png").status_code == 404
    for page in (0, 3):
        assert "2" in http.get(f"/v1/books/{mill}/pages/{page}.png").json()["detail"]
    assert http.get(f"/v1/books/{mill}/pages/1.png", params={"width": 10**6}).status_code == 400


def test_pages_are_not_drawn_from_a_file_that_changed(served, http, engine, tmp_path):
    path = tmp_path / "changing.pdf"
    path.write_bytes(pdf_bytes([["The sea is cold in March."]]))
    shelf = served.app.state.uploads.shelf
    book = shelf.add(path)
    assert http.get(f"/v1/books/{book.id}").json()["pages"] == 1
    path.write_bytes(pdf_bytes([["Another sea, and a longer page of it."]]))
    assert http.get(f"/v1/books/{book.id}").json()["pages"] is None
    path.unlink()
    assert http.get(f"/v1/books/{book.id}/pages/1.png").status_code == 404
    assert http.get(f"/v1/books/{book.id}").json()["file_id"] is None
    shelf.remove(book.id)


def turn(book, **changes):
    return {"book_id": book, "question": "Why *now*?", "answer": "nine hundred", **changes}


def export(http, form, *turns):
    return http.post("/v1/export", json={"format": form, "turns": turns})


def test_a_conversation_is_exported_with_the_books_own_words(http, mill):
    start = text_of(http, mill, 0, 40).index("old oak")
    cited = {"start": start, "end": start + 60, "citation": "The gate <b>, p. 1"}
    answer = export(http, "markdown", turn(mill, start=start, end=start + 7, evidence=[cited]))
    assert answer.headers["content-type"].startswith("text/markdown")
    written = answer.text
    assert "## Why \\*now\\*?" in written
    assert "nine hundred \\[1\\]" in written
    words = " ".join(text_of(http, mill, start, start + 60).split())
    assert f"> \\[1\\] {words}\n>\n> — *mill*, The gate \\<b\\>, p. 1, characters {start}–{start + 60}" in written


def test_untold_answers_say_so_in_an_export(http, mill):
    assert "does not seem to tell" in export(http, "markdown", turn(mill, told=False)).text


def test_markup_of_a_hostile_book_is_text_in_an_export(http):
    book = read(
        http, "evil.txt", b"Hello <script>alert(1)</script> [x](javascript:alert(1)) ![y](http://e.example) end"
    )
    cited = {"start": 0, "end": 80}
    written = export(http, "markdown", turn(book["book_id"], evidence=[cited])).text
    assert "\\<script\\>" in written
    assert not re.search(r"(?<!\\)[<\[]", written.split("## Books")[0])


def test_books_are_cited_for_latex_and_citation_processors(http):
    book = read(http, "Ada & Ben_{100%}.txt", b"Ada wrote to Ben about the engine, and Ben wrote back.")["book_id"]
    entry = export(http, "bibtex", turn(book), turn(book)).text
    assert entry.count("@book") == 1
    assert "title = {Ada \\& Ben\\_\\{100\\%\\}}" in entry
    answer = export(http, "csl-json", turn(book))
    (item,) = answer.json()
    assert (item["title"], item["type"]) == ("Ada & Ben_{100%}", "book")
    assert f"@book{{{item['id']}," in entry


def test_an_export_asks_for_what_is_there(http, mill):
    assert export(http, "markdown", turn("0" * 16)).status_code == 404
    assert export(http, "markdown", turn(mill, evidence=[{"start": 9, "end": 3}])).status_code == 400
    assert export(http, "pdf", turn(mill)).status_code == 400


def test_after_a_restart_files_are_as_they_were_and_a_broken_reading_says_so(engine, tmp_path):
    with Shelf.open(tmp_path, engine) as shelf:
        with serving(engine, shelf=shelf) as served:
            kept = read(served.http, "kept.txt", b"The kettle is blue, and the cup is red.")
        broken = shelf.folder / "uploads" / ("0" * 16)
        broken.mkdir()
        (broken / "half.txt").write_text("This was never read to its end.")
        with serving(engine, shelf=shelf) as served:
            files = {file["id"]: file for file in served.http.get("/v1/files").json()["data"]}
            assert files[kept["id"]]["status"] == "processed"
            half = files["file-" + "0" * 16]
            assert half["status"] == "error"
            assert "upload the file again" in half["status_details"]
            assert served.http.delete(f"/v1/files/{half['id']}").status_code == 200


def test_a_server_that_stops_stops_reading(engine, tmp_path, book_text):
    with Shelf.open(tmp_path, engine) as shelf:
        with serving(engine, shelf=shelf) as served:
            key = served.http.post("/v1/files", files={"file": ("long.md", (book_text * 60).encode())}).json()["id"]
            started = time.monotonic()
        assert time.monotonic() - started < 20
        with serving(engine, shelf=shelf) as served:
            assert served.http.get(f"/v1/files/{key}").json()["status"] == "error"


def test_files_are_kept_by_ids_alone(http):
    for key in ("file-..", "file-%2e%2e%2fx", "file-" + "z" * 16, "x"):
        assert http.get(f"/v1/files/{key}").status_code == 404


def test_the_books_need_the_key_and_the_page_does_not(engine, tmp_path):
    with Shelf.open(tmp_path, engine) as shelf, serving(engine, shelf=shelf, api_key="abc") as served:
        assert served.http.get("/").status_code == 200
        assert served.http.get("/room/room.js").status_code == 200
        for path in ("/v1/books", "/v1/files", "/room", "/v1/../v1/books"):
            assert served.http.get(path).status_code in (401, 404)
        assert served.http.get("/v1/books", headers={"Authorization": "Bearer abc"}).status_code == 200


def test_a_server_without_a_shelf_has_no_books(plain):
    assert plain.http.get("/v1/books").status_code == 404
    assert plain.http.get("/").status_code == 404


def test_openapi_describes_every_route_and_field(http):
    described = http.get("/openapi.json").json()
    paths = {path for path in described["paths"] if re.match("/v1/(files|books|export)", path)}
    assert len(paths) == 11
    for path in paths:
        for operation in described["paths"][path].values():
            assert operation["description"]
            assert "401" in operation["responses"]


def test_uploads_larger_than_memory_buffers_arrive_whole(http):
    content = b"".join(b"Sentence number %d of a long letter.\n" % n for n in range(1000))
    file = http.post("/v1/files", files={"file": ("letter.txt", io.BytesIO(content))}).json()
    assert file["bytes"] == len(content)
    assert wait(http, file["id"])["status"] == "processed"


def test_a_name_in_a_header_makes_no_header(http):
    answer = http.post(
        "/v1/files",
        content=b'--b\r\nContent-Disposition: form-data; name="file"; filename="../x\\"y.txt"\r\n\r\nThe pond is deep.'
        b"\r\n--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.json()["filename"] == "xy.txt"


def test_a_request_without_a_file_is_told_so(http):
    answer = http.post("/v1/files", data={"purpose": "user_data"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert isinstance(answer, httpx.Response)
