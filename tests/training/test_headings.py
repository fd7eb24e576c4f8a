"""Headings of manuals as questions: which are asked, and what is right."""

import numpy as np
import pytest
import torch

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import Examples, build_examples
from mamba_ssm.training.headings import ARTICLE_CHARACTERS, SECTION_CHARACTERS, heading_articles, without_number
from mamba_ssm.training.plan import Lessons, Plan, Source
from mamba_ssm.training.reading import Mined
from mamba_ssm.training.retrieval import right_windows
from mamba_ssm.training.stages import ReaderStage, SearchStage

LONG = "A locomotive is oiled before it leaves the shed, and again on its way. " * 3
ESI = {"n_enc": 1, "d_search": 16, "segment": 24, "warmup": 8, "window": 8, "top_k": 3, "d_read": 16, "n_read": 1}
ESI |= {"d_state": 4, "n_heads": 2, "question": 4}


def asked(article_list):
    return [question.text for article in article_list for p in article.paragraphs for question in p.questions]


@pytest.mark.parametrize(
    ("heading", "bare"),
    [
        ("A.1.2 What is steam?", "What is steam?"),
        ("Chapter 3. The boiler", "The boiler"),
        ("Appendix E Spare parts", "Spare parts"),
        ("37 Valve gear", "Valve gear"),
        ("19.3.1. Valve gear", "Valve gear"),
        ("A simple example", "A simple example"),
        ("3D views of valves", "3D views of valves"),
    ],
)
def test_a_number_before_a_heading_is_no_part_of_it(heading, bare):
    assert without_number(heading) == bare


def test_what_is_asked_stands_once_in_the_book_and_heads_enough_text():
    listed = [
        ("1. How engines are oiled", LONG),
        ("See also this", LONG),
        ("see also this", LONG),
        ("The water tank", "Short."),
        ("Oil", LONG),
        ("2. Where the sand goes", ""),
    ]
    articles = heading_articles("engines", listed)
    assert asked(articles) == ["How engines are oiled"]
    # All text is there, for what is right must be told from it; no heading is.
    assert [p.text for article in articles for p in article.paragraphs] == [LONG.strip()] * 3 + ["Short.", LONG.strip()]


def test_a_long_manual_is_several_articles_and_a_long_section_is_cut():
    most = SECTION_CHARACTERS[1]
    listed = [(f"The use of part {number}", "word " * most) for number in range(20)]
    articles = heading_articles("parts", listed)
    assert asked(articles) == [heading for heading, _ in listed]
    assert {len(p.text) for article in articles for p in article.paragraphs} == {most}
    sizes = [sum(len(p.text) for p in article.paragraphs) for article in articles]
    assert all(ARTICLE_CHARACTERS <= size < ARTICLE_CHARACTERS + most for size in sizes[:-1])


def made_up(n: int, first_id: int) -> Examples:
    """n articles of 64 tokens of their own range, a question of the first token about each, and a long gold span."""
    ids = np.arange(n * 64) % 50 + first_id
    one = np.zeros((n, 4), dtype=np.int64)
    one[:, 0] = first_id
    gold = np.tile(np.array([[[8, 39]]]), (n, 1, 1))
    return Examples(ids, 64 * np.arange(n + 1), one, np.arange(n), gold, gold[:, 0])


def model() -> MambaLMHeadModel:
    torch.manual_seed(0)
    config = MambaConfig(d_model=32, n_layer=2, vocab_size=301, ssm_cfg={"d_state": 4}, esi=ESI)
    return MambaLMHeadModel(config, initializer_cfg={"initializer_range": 1.0})


def kind(questions: torch.Tensor) -> int:
    """Which examples a batch is of: its questions' tokens are from 1, 101 or 201 on."""
    (first,) = {int(token) for token in questions[questions > 0]}
    return first // 100


def test_the_search_learns_from_headings_too_and_the_reader_does_not():
    found: Mined = [(torch.zeros((9, 4), dtype=torch.long), torch.zeros((9, 4)))]
    sources = [Source(made_up(9, 1), 2, found), Source(made_up(9, 101), 2, found)]
    lessons = Lessons(sources, headings=made_up(9, 201))
    plan = Plan({}, {}, 8, 32, 8, crops=2, crop=64, batch=2)
    search, reader = SearchStage(model(), plan, lessons), ReaderStage(model(), plan, lessons)
    assert [kind(search.at(step).questions) for step in range(8)] == [0, 2, 0, 1, 0, 2, 0, 1]
    turns = [reader.at(step) for step in range(32)]
    assert [kind(turn.read.questions) for turn in turns[:8]] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert [kind(turn.search.questions) for turn in turns if turn.search] == [0, 2, 0, 1, 0, 2, 0, 1]


def test_any_part_of_what_a_heading_heads_is_right():
    torch.manual_seed(1)
    plan = Plan({}, {}, 8, 8, 8, crops=1, crop=64, batch=2)
    stage = SearchStage(model(), plan, Lessons([Source(made_up(1, 1))]))
    # Windows of 8 tokens begin at every 4th, and 8..39 is right: those from 8 to 32 are seven of fifteen.
    assert stage.weights(stage.at(0)) == {"search": 1}
    right = right_windows(stage.at(0), stage.model.searcher().config)
    assert right[0, 0].nonzero().flatten().tolist() == list(range(2, 9))


def test_headings_become_examples_whose_gold_is_the_section():
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL)
    built = build_examples(
        heading_articles("engines", [("Before it all", "Short."), ("How oil flows", LONG)]), tokenizer
    )
    first, last = built.gold[0, 0]
    assert tokenizer.decode(built.text(0)[first : last + 1].tolist()).strip() == LONG.strip()
    assert tokenizer.decode(built.questions[0][built.questions[0] > 0].tolist()).strip() == "How oil flows"
