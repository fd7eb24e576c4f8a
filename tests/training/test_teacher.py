"""The teacher reads WordPieces and answers in our tokens."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.training.examples import Examples
from mamba_ssm.training.reading import ReadBatches
from mamba_ssm.training.teacher import LENGTH, Pieces, Teacher, pieces_of_tokens, tune

W, MARGIN = 8, 2
READ = W + 2 * MARGIN


@st.composite
def two_ways_to_cut(draw):
    """A text, and two ways to cut it: tokens cover all of it, pieces only what is no white space."""
    text = draw(st.text("ab c\n", min_size=1, max_size=40).filter(lambda text: text.strip()))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)))) | {0, len(text)})
    tokens = np.array(list(itertools.pairwise(cuts)))
    pieces, start = [], None
    for i, character in enumerate(f"{text} "):
        if start is not None and (character.isspace() or draw(st.booleans())):
            pieces.append((start, i))
            start = None
        if start is None and not character.isspace():
            start = i
    return text, tokens, np.array(pieces)


@given(two_ways_to_cut())
def test_a_token_has_the_pieces_of_its_first_and_last_character(cut):
    text, tokens, pieces = cut
    first, last = pieces_of_tokens(text, tokens[:, 0], tokens[:, 1], pieces)
    for (start, end), a, b in zip(tokens.tolist(), first.tolist(), last.tolist(), strict=True):
        spoken = [i for i in range(start, end) if not text[i].isspace()]
        if spoken:
            assert pieces[a][0] <= spoken[0] < pieces[a][1]
            assert pieces[b][0] <= spoken[-1] < pieces[b][1]


def tiny_teacher(pieces: Pieces) -> Teacher:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32
    )
    return Teacher(transformers.BertModel(config).state_dict(), pieces, MARGIN).eval()


@pytest.fixture
def examples():
    """One article of 64 tokens, and questions whose answer is the token that they name."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.arange(103, 119).repeat(4)).astype(np.int64)
    at = np.arange(0, 64, 4)
    gold = np.stack([at, at], -1)[:, None]
    questions = np.pad(ids[at][:, None], ((0, 0), (0, 3)))
    zeros = np.zeros(len(at), dtype=np.int64)
    return Examples(ids, np.array([0, 64]), questions, zeros, gold, np.tile([[0, 64]], (len(at), 1)))


@pytest.fixture
def pieces(examples):
    """A piece a token."""
    every = torch.arange(64)
    return Pieces(torch.from_numpy(examples.ids), torch.from_numpy(examples.questions), every, every)


@pytest.fixture
def mined(examples):
    """Each question's own window, the one after it, and a place where nothing was found."""
    starts = torch.from_numpy(examples.gold[:, 0, 0]).clamp(MARGIN, 64 - 2 * W - MARGIN)
    starts = torch.stack([starts, starts + W, torch.full_like(starts, -1)], 1)
    scores = torch.tensor([[2.0, 1.0, float("-inf")]]).expand(len(starts), -1)
    return [(starts, scores)]


def test_only_tokens_that_were_found_can_be_pointed_at(examples, pieces, mined):
    (taught,) = tiny_teacher(pieces).label(examples, mined, W)
    assert taught.logits.shape == (16, 3, READ, 2)
    assert (taught.logits[:, 2] == -6e4).all()
    assert (taught.logits[:, :2] > -1e3).all()


def test_a_margin_that_reaches_out_of_the_text_cannot_be_pointed_at(examples, pieces):
    starts = torch.tensor([[0, 64 - W]]).expand(16, -1)
    (taught,) = tiny_teacher(pieces).label(examples, [(starts, torch.zeros(16, 2))], W)
    outside = torch.zeros(2, READ, dtype=torch.bool)
    outside[0, :MARGIN] = outside[1, -MARGIN:] = True
    assert (taught.logits[:, outside] == -6e4).all()
    assert (taught.logits[:, ~outside] > -1e3).all()


def test_a_token_s_logit_is_that_of_its_piece(examples, pieces, mined):
    teacher = tiny_teacher(pieces)
    (taught,) = teacher.label(examples, mined, W)
    number, window, token = 3, 1, 5
    start = int(mined[0][0][number, window]) - MARGIN
    ids = [101, int(examples.questions[number, 0]), 102, *examples.ids[start : start + READ].tolist(), 102]
    types = [0] * 3 + [1] * (READ + 1)
    with torch.no_grad():
        read = teacher.bert(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).last_hidden_state
        expected = teacher.span(read)[0, 3 + token] + teacher.score_weight * 1.0
    assert len(ids) < LENGTH
    torch.testing.assert_close(taught.logits[number, window, token].float(), expected, atol=2e-3, rtol=2e-3)


def test_it_learns_to_point(examples, pieces, mined):
    teacher = tiny_teacher(pieces)
    lines = []
    batches = ReadBatches(examples, mined, 8, 2, ESIConfig(window=W, margin=MARGIN), (0,), "cpu")
    tune(teacher, map(batches.at, itertools.count()), 60, 1e-2, lines.append)
    losses = [float(line.split("teacher ")[1].split()[0]) for line in lines]
    assert losses[-1] < 0.6 * losses[0]
