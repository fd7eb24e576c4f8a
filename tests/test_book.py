"""Reading books and asking them, from Python."""

import contextlib
import copy
import gc
import io
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mamba_ssm
from mamba_ssm.book import Engine, open_book
from mamba_ssm.book.answers import GOES_ON
from mamba_ssm.book.blocks import text_blocks
from mamba_ssm.book.engine import BEFORE
from mamba_ssm.book.find import Finder
from mamba_ssm.book.source import FileSource
from mamba_ssm.cli.output import show
from mamba_ssm.errors import BookError, CheckpointError, QuestionError
from mamba_ssm.esi import reader
from mamba_ssm.esi.reader import PAD
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text import Piece

QUESTION = "Who planted 42 trees near Zürich in chapter 6?"


@pytest.fixture(scope="module")
def engine(tiny_model):
    return Engine.load(tiny_model)


@pytest.fixture(scope="module")
def saved(engine, book_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "garden.esi"
    with mamba_ssm.read(book_path, engine, progress=False) as book:
        book.save(path)
    return path


def said(answer):
    """All of an answer but the time that it took."""
    return {key: value for key, value in answer.to_dict().items() if key != "seconds"}


def test_answer_and_evidence_are_slices_of_the_book(engine, book_path, book_text):
    answer = open_book(book_path, engine).ask(QUESTION)
    assert answer.text
    assert answer.text == book_text[answer.start : answer.end]
    assert 0 < answer.confidence <= 1
    assert len(answer.evidence) == 8
    for passage in answer.evidence:
        assert passage.text == book_text[passage.start : passage.end] == passage.text.strip()
        # 64 tokens; at either end a character of which the window held a part counts whole.
        assert len(engine.tokenizer.encode(passage.text).ids) <= 64 + 6
        chapter = book_text[: passage.start + 1].count("# Chapter")
        assert passage.section == f"Chapter {chapter}"
    scores = [passage.score for passage in answer.evidence]
    assert scores == sorted(scores, reverse=True)
    assert answer.book.characters == len(book_text)
    assert answer.book.tokens == len(engine.tokenizer.encode(book_text).ids)


@pytest.mark.parametrize(
    ("between", "statement"),
    [("\n\n", "Tree {} near Zürich."), (" ", "In Zürich tree {0} is there since 1{0}.")],
)
def test_no_answer_goes_on_in_the_next_paragraph_or_sentence(engine, tmp_path, between, statement):
    path = tmp_path / "book.txt"
    path.write_text(between.join(statement.format(i) for i in range(300)), "utf-8")
    with mamba_ssm.read(path, engine, progress=False) as book:
        answers = book.ask_all([f"Where is tree {i}?" for i in range(24)], max_new_tokens=24)
    assert not any(f".{between}" in answer.text for answer in answers)
    assert any(len(answer.text) > 5 for answer in answers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("482913. Of the", True),
        ("Latcu. Siohou was", True),
        ("the moon! And then", True),
        ("the end\n\nThe next", True),
        ("Joan B. Kroc Institute", False),
        ("Rev. William Corby", False),
        ("Mrs. Smith and Warner Bros. Records", False),
        ("3.5 million people.", False),
    ],
)
def test_a_sentence_s_end_is_not_an_abbreviation_s(text, expected):
    assert bool(GOES_ON.search(text)) is expected


def test_a_text_s_first_window_is_read_as_if_another_text_were_before_it(engine):
    config, question = engine.config, engine.question(QUESTION)
    ids = engine.tokens(np.arange(5, 5 + config.read_window))[None, None]
    before = engine.tokens(np.array(engine.tokenizer.encode(BEFORE).ids[-10:]))
    scores = torch.ones(1, 1)
    first, other = ids.clone(), ids.clone()
    first[..., :10], other[..., :10] = PAD, before
    memory, whole = (engine.read(question, windows, scores) for windows in (first, other))
    torch.testing.assert_close(memory.states, whole.states)
    reader = engine.model.esi.reader
    with torch.inference_mode():
        spans = {name: reader.best_spans(each, n=9999)[0] for name, each in (("first", memory), ("other", whole))}
    possible = {name: each.first[each.probability > 0].amin().item() for name, each in spans.items()}
    assert possible == {"first": 10, "other": 0}


def test_products_in_bf16_read_the_same_windows_nearly_alike(engine, saved, monkeypatch):
    questions = [QUESTION, "Who planted trees?", "What is near Zürich?"]
    with mamba_ssm.load_book(saved, engine) as book:
        answers = []
        for able in (False, True):
            monkeypatch.setattr("mamba_ssm.book.engine.has_bf16_products", lambda able=able: able)
            answers.append(book.ask_all(questions))
    for exact, rounded in zip(*answers, strict=True):
        assert exact.confidence == pytest.approx(rounded.confidence, abs=0.02)
        scores = [{p.start: p.score for p in each.evidence} for each in (exact, rounded)]
        assert scores[0] != scores[1]
        shared = scores[0].keys() & scores[1].keys()
        assert len(shared) >= 6
        assert [scores[0][at] for at in shared] == pytest.approx([scores[1][at] for at in shared], abs=0.1)


def test_threads_that_ask_one_saved_book_get_what_one_gets(engine, saved):
    questions = [f"Who planted {n} trees in chapter {n % 7}?" for n in range(8)]
    with mamba_ssm.load_book(saved, engine) as book:
        alone = [said(book.ask(question)) for question in questions]
    with mamba_ssm.load_book(saved, engine) as book, ThreadPoolExecutor(4) as threads:
        assert [said(answer) for answer in threads.map(book.ask, questions)] == alone


def test_search_agrees_with_scoring_every_window(engine, book_path, book_text):
    """Keys of the whole text in one call, windows by a loop: nothing is shared with the streaming search."""
    from mamba_ssm.esi.module import segments

    question = engine.question(QUESTION)
    ids = torch.from_numpy(engine.tokenizer.encode(book_text).ids.astype(np.int64))
    n = len(ids)
    rows = segments(torch.nn.functional.pad(ids, (0, -n % engine.config.block)), engine.config)
    with torch.no_grad():
        keys = engine.searcher.segment_keys(rows).flatten(0, 1)[:n]
        matches = question.query.vectors[0] @ keys.T
    scores = [
        (float((question.query.weights[0] * matches[:, start : start + 64].amax(1)).sum()), start)
        for start in range(0, n - 32, 32)
    ]
    finder = Finder([question.query], 5, engine)
    for block, block_keys in FileSource(book_path, engine).blocks():
        finder.push(block, block_keys)
    found = [(each.score, each.window.first) for each in finder.found()[0]]
    best = sorted(scores, reverse=True)[:5]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in best], abs=0.05)
    assert len({start for _, start in found} & {start for _, start in best}) >= 4


@settings(max_examples=15)
@given(segments=st.integers(1, 40), length=st.integers(1, 30_000), suffix=st.sampled_from([".txt", ".md"]))
def test_block_size_changes_nothing(engine, book_text, tmp_path_factory, segments, length, suffix):
    path = tmp_path_factory.mktemp("part") / f"part{suffix}"
    path.write_text("x" + book_text[:length], encoding="utf-8")

    class Blocks(Engine):
        block_tokens = segments * engine.config.block

    other = Blocks(engine.model, engine.tokenizer, engine.name)
    whole, parts = open_book(path, engine).ask(QUESTION), open_book(path, other).ask(QUESTION)
    assert parts.confidence == pytest.approx(whole.confidence, rel=1e-3)
    assert [p.score for p in parts.evidence] == pytest.approx([p.score for p in whole.evidence], abs=1e-3)
    assert (parts.text, parts.start, parts.book) == (whole.text, whole.start, whole.book)
    assert {(p.text, p.start, p.section) for p in parts.evidence} == {
        (p.text, p.start, p.section) for p in whole.evidence
    }


@settings(max_examples=40)
@given(
    texts=st.lists(st.text(alphabet="ab \n.é🌱漢", min_size=1, max_size=30), min_size=1, max_size=12),
    size=st.integers(1, 9),
)
def test_blocks_cover_the_text(engine, texts, size):
    pieces = [Piece(text, page=i + 1, section=f"§{i + 1}") for i, text in enumerate(texts)]
    page_of = [i + 1 for i, text in enumerate(texts) for _ in text]
    whole = "".join(texts)
    encoded = engine.tokenizer.encode(whole)
    blocks = list(text_blocks(pieces, engine.tokenizer, size))
    assert np.array_equal(np.concatenate([block.ids for block in blocks]), encoded.ids)
    assert np.array_equal(np.concatenate([block.starts for block in blocks]), encoded.starts)
    joined = blocks[0]
    for number, block in enumerate(blocks):
        assert block.text == whole[block.offset : block.offset + len(block.text)]
        assert block.first == number * size
        if number:
            joined = block.after(joined.tail(3))
        for start, end in zip(joined.starts.tolist(), joined.ends.tolist(), strict=True):
            assert joined.text[start - joined.offset : end - joined.offset] == whole[start:end]
            assert joined.mark(start).page == page_of[start]
        titles, under = block.sections(2)
        assert [titles[i] for i in under] == [f"§{page_of[start]}" for start in block.starts[::2].tolist()]
    assert blocks[-1].offset + len(blocks[-1].text) == len(whole)


@pytest.mark.parametrize("text", ["a", "Trees.", "One two three four five six seven eight nine ten. " * 5])
def test_a_text_shorter_than_a_window(engine, tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text(text)
    answer = open_book(path, engine).ask("What?")
    assert answer.evidence[0].start == 0
    assert answer.text
    assert answer.text in text
    assert all(passage.text == text[passage.start : passage.end] for passage in answer.evidence)


def test_evidence_never_starts_beyond_the_text(engine, tmp_path):
    """A text that ends soon after a segment: what is padded must not be found, however well it scores."""
    path = tmp_path / "padded.txt"
    path.write_text("word " * 200)
    n = engine.tokenizer.encode("word " * 200).ids.size
    finder = Finder([engine.question("word").query], 50, engine)
    for block, keys in FileSource(path, engine).blocks():
        finder.push(block, keys)
    starts = [each.window.first for each in finder.found()[0]]
    assert sorted(starts) == list(range(0, max(starts) + 1, 32))
    assert max(starts) < n
    assert max(starts) + 64 >= n


@pytest.mark.parametrize("segments", [2, 5, 32])
def test_windows_have_the_tokens_around_them_whatever_the_blocks(engine, book_path, book_text, segments):
    class Blocks(Engine):
        block_tokens = segments * engine.config.block

    other = Blocks(engine.model, engine.tokenizer, engine.name)
    ids, margin, size = engine.tokenizer.encode(book_text).ids, engine.config.margin, engine.config.window
    finder = Finder([other.question(QUESTION).query], 400, other)
    for block, keys in FileSource(book_path, other).blocks():
        finder.push(block, keys)
    windows = [each.window for each in finder.found()[0]]
    assert len(windows) > 200
    for window in windows:
        before = max(window.first - margin, 0)
        assert window.ids.tolist() == ids[before : window.first + size + margin].tolist()
        assert window.own_ids.tolist() == ids[window.first : window.first + size].tolist()
        assert book_text[int(window.starts[0]) : int(window.ends[-1])] == window.text
        assert window.passage(0.0).text == window.own_text


def test_a_sentence_across_the_ends_of_windows_is_read_whole(tmp_path):
    """Longer than half a window, wherever it stands to the windows."""
    engine = Engine.load(device="cpu")
    told = "The locker number of Brontkael, who came with the others from the old mill by the river on the last day of "
    told += "a long and wet winter, when nobody thought of lockers, is 48213377."
    assert engine.config.stride < len(engine.tokenizer.encode(told).ids) < engine.config.window
    right = 0
    for words in range(0, 32, 4):
        text = "word " * (200 + words) + told + " And so on." * 40
        path = tmp_path / f"{words}.txt"
        path.write_text(text, encoding="utf-8")
        answer = open_book(path, engine).ask("What is the locker number of Brontkael?")
        assert answer.text == text[answer.start : answer.end]
        assert answer.source is not None
        assert answer.text in answer.evidence[answer.source].text
        right += answer.text == "48213377"
    assert right >= 6


def test_an_answer_may_lie_in_a_window_that_is_ranked_first(engine, book_path, monkeypatch):
    """Where all windows count as ranked first, it is as if all were among the top k."""
    book, ranked = open_book(book_path, engine), engine.config.n_ranked
    every = said(book.ask(QUESTION, top_k=ranked))
    monkeypatch.setattr(reader, "RANKED_FIRST", 0)
    assert said(book.ask(QUESTION, top_k=1)) != every
    monkeypatch.setattr(reader, "RANKED_FIRST", ranked)
    assert said(book.ask(QUESTION, top_k=1)) == every


@pytest.mark.parametrize("options", [{}, {"esi": False, "max_new_tokens": 3}, {"top_k": 2, "passages": 3}])
def test_saved_and_streamed_answers_are_the_same(engine, book_path, saved, options):
    questions = [QUESTION, "chapter?", "Where did gardener number 7 plant trees? " * 5]
    streamed = open_book(book_path, engine).ask_all(questions, **options)
    with mamba_ssm.load_book(saved, engine) as book:
        loaded = book.ask_all(questions, **options)
        alone = [book.ask(question, **options) for question in questions]
    assert [said(a) for a in loaded] == [said(a) for a in streamed] == [said(a) for a in alone]
    assert [answer.question for answer in loaded] == questions


@pytest.fixture(scope="module")
def codes(tmp_path_factory, book_text):
    """A book of twelve chapters, with a sentence in each that differs in a number alone, far from the heading."""
    filler = "The gardeners spoke of the weather, of seeds, and of what the year might bring. " * 30
    chapters = [
        f"# Chapter {n}\n\n{filler}\n\nThe access code of Velkor is {4000 + 37 * n}.\n\n{filler}\n\n"
        for n in range(1, 13)
    ]
    path = tmp_path_factory.mktemp("codes") / "codes.md"
    path.write_text("".join(chapters))
    return path


@pytest.mark.parametrize("chapter", [3, 7, 9])
def test_the_chapter_that_is_asked_for_comes_first(codes, chapter):
    question = f"In Chapter {chapter}, what is the access code of Velkor?"
    best = open_book(codes).ask(question).evidence[0]
    assert best.section == f"Chapter {chapter}"
    assert f"Velkor is {4000 + 37 * chapter}." in best.text


def test_a_saved_book_knows_its_headings(codes, tmp_path):
    question = "What is the access code of Velkor in Chapter 5?"
    streamed = open_book(codes).ask(question)
    with mamba_ssm.read(codes, progress=False) as book:
        book.save(tmp_path / "codes.esi")
    with mamba_ssm.load_book(tmp_path / "codes.esi") as book:
        assert said(book.ask(question)) == said(streamed)


def test_headings_are_read_alone_and_of_a_text_without_sections_there_are_none(engine):
    assert engine.headings([None, " "], np.array([0, 1])) is None
    titles = ["Photosynthesis", None, "The light-dependent reactions of photosynthesis"]
    together = engine.headings(titles, np.array([0, 1, 2]))
    assert together.place.tolist() == [0, 2, 1]
    query = engine.question("What is photosynthesis?").query
    for column in (0, 2):
        alone = Engine(engine.model, engine.tokenizer, "other").headings([titles[column]], np.array([0]))
        alone = alone.matches(query)[..., 0]
        torch.testing.assert_close(together.matches(query)[..., column], alone, atol=1e-6, rtol=0)


def test_many_questions_at_once(engine, saved):
    questions = [f"Who planted tree {n}?" + " why" * n for n in range(40)]
    with mamba_ssm.load_book(saved, engine) as book:
        together = book.ask_all(questions)
        assert [answer.question for answer in together] == questions
        for number in (0, 17, 39):
            assert said(together[number]) == said(book.ask(questions[number]))


def test_without_esi_the_model_reads_alone(engine, book_path):
    answer = open_book(book_path, engine).ask(QUESTION, esi=False, max_new_tokens=5)
    assert answer.evidence == []
    assert answer.start is None
    assert 0 <= answer.confidence <= 1


def test_a_checkpoint_without_esi_weights(plain_model, book_path, book_text):
    answer = open_book(book_path, plain_model).ask("How many trees did gardener number 33 plant?", max_new_tokens=4)
    assert len(answer.evidence) == 8
    assert all(passage.text == book_text[passage.start : passage.end] for passage in answer.evidence)
    scores = [passage.score for passage in answer.evidence]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= answer.confidence <= 1


@pytest.mark.parametrize("question", ["", "  \n", "word " * 2000])
def test_questions_that_cannot_be_asked(engine, book_path, question):
    with pytest.raises(QuestionError):
        open_book(book_path, engine).ask(question)


def test_no_file_is_left_behind(engine, book_path, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    book = mamba_ssm.read(book_path, engine, progress=False)
    book.save(tmp_path / "a.esi")
    del book
    gc.collect()
    with pytest.raises(BookError, match="cannot be written"):
        mamba_ssm.load_book(tmp_path / "a.esi", engine).save(tmp_path / "nowhere" / "b.esi")
    damaged = tmp_path / "damaged.txt"
    damaged.write_bytes(b"")
    with pytest.raises(BookError):
        mamba_ssm.read(damaged, engine, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["a.esi", "damaged.txt", "tmp"]
    assert os.listdir(temporary) == []


def test_an_answer_says_whether_the_book_seems_to_tell(engine, saved, capsys):
    book, reader = mamba_ssm.load_book(saved, engine), engine.model.esi.reader
    answer = book.ask(QUESTION)
    before = reader.least_score.clone()
    try:
        for least, told in ((answer.evidence[0].score - 0.01, True), (answer.evidence[0].score + 0.01, False)):
            reader.least_score.fill_(least)
            again = book.ask(QUESTION)
            assert (again.told, again.text) == (told, answer.text)
            show(again)
            assert ("does not seem to tell" in " ".join(capsys.readouterr().out.split())) is not told
    finally:
        reader.least_score.copy_(before)


def test_another_model_cannot_use_the_keys(saved, other_model):
    with pytest.raises(BookError, match="another model"):
        mamba_ssm.load_book(saved, other_model)


@pytest.mark.parametrize(
    ("size", "value", "opens"), [("n_ranked", 12, True), ("top_k", 5, True), ("warmup", 96, False)]
)
def test_only_what_keys_depend_on_makes_another_model(engine, saved, size, value, opens):
    config = copy.deepcopy(engine.model.config)
    config.esi = {**config.esi, size: value}
    model = MambaLMHeadModel(config)
    model.load_state_dict(engine.model.state_dict())
    other = Engine(model, engine.tokenizer, "other")
    with contextlib.nullcontext() if opens else pytest.raises(BookError, match="another model"):
        mamba_ssm.load_book(saved, other)


def rewritten(saved, changes):
    """The bytes of a saved book with some members changed, or dropped where the change is None."""
    out = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            change = changes.get(name, lambda data: data)
            if change is not None:
                new.writestr(name, change(old.read(name)))
    return out.getvalue()


def meta(**changes):
    def change(data):
        values = json.loads(data)
        values["book"] |= {k: v for k, v in changes.items() if k in values["book"]}
        values |= {k: v for k, v in changes.items() if k not in values["book"]}
        return json.dumps(values).encode()

    return {"meta.json": change}


def block(**changes):
    def change(data):
        from safetensors.numpy import load, save

        parts = load(data)
        parts |= {name: new(parts[name]) for name, new in changes.items()}
        return save({name: np.ascontiguousarray(part) for name, part in parts.items()})

    return {"blocks/000000": change}


def marks(value):
    return lambda old: np.frombuffer(json.dumps(value).encode(), np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        meta(tokens=10**12),
        meta(tokens=0),
        meta(tokens="many"),
        meta(tokens=True),
        meta(blocks=10**9),
        meta(block_tokens=10**9),
        meta(block_tokens=100),
        meta(characters=3),
        meta(sha256=None),
        {"meta.json": lambda data: b"[" * 100_000},
        {"meta.json": lambda data: b"[]"},
        {"meta.json": lambda data: data + b" " * 100_000},
        {"meta.json": None},
        {"mamba-esi": lambda data: b"99"},
        {"blocks/000000": None},
        {"blocks/000000": lambda data: data[: len(data) // 2]},
        {"blocks/000000": lambda data: b"\xff" * 64},
        {"blocks/000000": lambda data: (2**62).to_bytes(8, "little") + data[8:]},
        block(ids=lambda ids: ids * 0 - 1),
        block(ids=lambda ids: ids + 10**6),
        block(ids=lambda ids: ids[:-1]),
        block(ids=lambda ids: ids.astype(np.float32)),
        block(codes=lambda codes: codes[:, :-1]),
        block(scales=lambda scales: scales * np.float16("nan")),
        block(starts=lambda starts: starts - 5),
        block(starts=lambda starts: starts[::-1]),
        block(ends=lambda ends: ends + 10**6),
        block(ends=lambda ends: ends * 0),
        block(text=lambda text: text[:100]),
        block(text=lambda text: text * 0 + 255),
        block(marks=marks([0, []])),
        block(marks=marks([0, [[5, None, None]]])),
        block(marks=marks([0, [[0, None, None], [900, 1, "a"], [4, 1, "a"]]])),
        block(marks=marks([0, [[0, "1", None]]])),
        block(marks=marks([0, [[0, 1]]])),
        block(marks=marks([7, [[0, None, None]]])),
        block(marks=marks({"a": 1})),
    ],
)
def test_a_saved_book_that_lies(engine, saved, tmp_path, changes):
    path = tmp_path / "bad.esi"
    path.write_bytes(rewritten(saved, changes))
    with pytest.raises(BookError, match=r"read the book again") as caught:
        mamba_ssm.load_book(path, engine).ask("Who?")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no zip at all", None])
def test_a_saved_book_that_is_none(engine, saved, tmp_path, data):
    path = tmp_path / "bad.esi"
    path.write_bytes(saved.read_bytes()[:-100] if data is None else data)
    with pytest.raises(BookError, match="damaged"):
        mamba_ssm.load_book(path, engine)


@settings(max_examples=60)
@given(data=st.data())
def test_a_saved_book_with_flipped_bytes(engine, saved, tmp_path_factory, data):
    """Either it is found out, or an answer comes all the same; nothing else may happen."""
    content = bytearray(saved.read_bytes())
    tail = st.integers(len(content) - 1500, len(content) - 1)
    for place in data.draw(st.lists(st.one_of(tail, st.integers(0, len(content) - 1)), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flipped") / "bad.esi"
    path.write_bytes(content)
    with contextlib.suppress(BookError):
        mamba_ssm.load_book(path, engine).ask("Who?")


def test_a_compressed_book_is_refused(engine, saved, tmp_path):
    path = tmp_path / "bomb.esi"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(BookError, match="damaged"):
        mamba_ssm.load_book(path, engine)


def test_models_that_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError):
        Engine.load(tmp_path)
    monkeypatch.setattr("mamba_ssm.book.engine.DEFAULT_MODEL", tmp_path)
    with pytest.raises(CheckpointError, match="--model"):
        Engine.load()
