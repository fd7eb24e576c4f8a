"""The measurement of follow-up questions, on a book and pairs of a known kind."""

from follow_ups import follow_ups

from mamba_ssm.book import Engine, read
from mamba_ssm.book.conversation import leaves_out


def test_every_way_to_ask_is_scored(tiny_model, book_path, book_text):
    passage = "the curious naïve gardener number 7 planted 14"
    pair = {"first": "Who planted 14 trees?", "answers": ["14"], "passage": passage, "start": book_text.index(passage)}
    pairs = [pair | {"question": "And how many?"}, pair | {"question": "How many trees did gardener number 7 plant?"}]
    assert [leaves_out(pair["question"]) for pair in pairs] == [True, False]
    with read(book_path, Engine.load(tiny_model), progress=False) as book:
        ways = follow_ups(book, pairs)
        alone = [book.ask(pair["question"]).text for pair in pairs]
        followed = book.ask("And how many?", context=pair["first"]).text
    assert list(ways) == ["alone", "search", "search_answer", "search_read", "rule"]
    assert [row["answer"] for row in ways["alone"]] == alone
    assert [row["answer"] for row in ways["rule"]] == [followed, alone[1]]
