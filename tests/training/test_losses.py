"""The losses by hand, and what training calls right."""

import math

import pytest
import torch

from mamba_ssm.esi.module import segments
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.losses import any_of_loss
from mamba_ssm.training.reading import ANSWER, END, IGNORE, QUESTION, answer_loss, answer_sequences, right_places
from mamba_ssm.training.retrieval import SearchBatch, gold_windows, search_book, search_loss

ESI = {
    "n_enc": 1,
    "d_search": 16,
    "segment": 24,
    "warmup": 8,
    "window": 8,
    "top_k": 3,
    "d_read": 16,
    "n_read": 1,
    "d_state": 4,
    "n_heads": 2,
    "question": 4,
}
BLOCK, WINDOW, STRIDE = 16, 8, 4


@pytest.fixture
def model() -> MambaLMHeadModel:
    torch.manual_seed(0)
    config = MambaConfig(d_model=32, n_layer=2, vocab_size=201, ssm_cfg={"d_state": 4}, esi=ESI)
    return MambaLMHeadModel(config, initializer_cfg={"initializer_range": 1.0}).eval()


class TestAnyOf:
    def test_it_is_minus_the_log_of_the_share_of_the_right_places(self) -> None:
        logits = torch.tensor([[0.5, -1.0, 2.0, 0.0], [3.0, 1.0, -2.0, 0.5]])
        right = torch.tensor([[[True, False, True, False]], [[False, True, False, False]]])
        shares = []
        for row, (chosen,) in zip(logits.tolist(), right.tolist(), strict=True):
            masses = [math.exp(x) for x in row]
            shares.append(sum(m for m, c in zip(masses, chosen, strict=True) if c) / sum(masses))
        expected = -sum(map(math.log, shares)) / 2
        assert any_of_loss(logits, right).item() == pytest.approx(expected, rel=1e-5)

    def test_each_of_several_answers_is_to_be_found(self) -> None:
        logits = torch.tensor([[2.0, -30.0, 2.0, -30.0]])
        right = torch.tensor([[[True, False, False, False], [False, False, True, False]]])
        # Half of the mass each is the best that can be.
        assert any_of_loss(logits, right).item() == pytest.approx(math.log(2), rel=1e-5)
        one_only = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
        assert any_of_loss(one_only, right).item() > 10

    def test_an_answer_with_nothing_right_counts_as_nothing(self) -> None:
        logits = torch.tensor([[1.0, 2.0], [5.0, -5.0]], requires_grad=True)
        right = torch.tensor([[[True, False], [False, False]], [[False, False], [False, False]]])
        loss = any_of_loss(logits, right)
        loss.backward()
        assert loss.item() == pytest.approx(math.log(1 + math.e), rel=1e-5)
        assert logits.grad.isfinite().all()
        assert not logits.grad[1].any()
        assert logits.grad[0, 0] < 0 < logits.grad[0, 1]

    def test_nothing_right_at_all_is_zero_with_a_gradient(self) -> None:
        logits = torch.randn(2, 3, requires_grad=True)
        loss = any_of_loss(logits, torch.zeros(2, 1, 3, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0.0
        assert logits.grad.isfinite().all()

    def test_places_where_nothing_is_have_no_mass(self) -> None:
        logits = torch.tensor([[1.0, float("-inf"), 2.0]], requires_grad=True)
        loss = any_of_loss(logits, torch.tensor([[[True, False, False]]]))
        loss.backward()
        assert loss.item() == pytest.approx(math.log(1 + math.e), rel=1e-5)
        assert logits.grad.isfinite().all()

    def test_half_precision_is_summed_in_full(self) -> None:
        logits = torch.zeros(1, 100_000, dtype=torch.float16)
        right = torch.arange(100_000)[None, None] == 7
        assert any_of_loss(logits, right).item() == pytest.approx(math.log(100_000), rel=1e-4)


class TestGold:
    def test_a_window_must_hold_the_whole_span(self) -> None:
        gold = torch.tensor([[[4, 7], [-1, -1]], [[3, 4], [12, 12]], [[-1, -1], [-1, -1]]])
        starts = torch.tensor([0, 4, 8, -1])
        nowhere = [False, False, False, False]
        assert gold_windows(gold, starts, 8).tolist() == [
            [[True, True, False, False], nowhere],
            [[True, False, False, False], [False, False, True, False]],
            [nowhere, nowhere],
        ]

    def test_the_span_that_a_window_cuts_is_not_in_it(self) -> None:
        gold = torch.tensor([[[7, 8]]])
        assert gold_windows(gold, torch.tensor([[0, 4, 8]]), 8).tolist() == [[[False, True, False]]]

    def test_right_places_are_the_tokens_of_the_spans(self) -> None:
        starts = torch.tensor([[4, 20, 0, -1]])
        gold = torch.tensor([[[5, 6], [22, 22], [50, 51]]])
        first, last = right_places(starts, gold, 8)
        # Windows at 4, 20 and 0 hold span 5..6 at their tokens 1..2, none, 5..6; span 22 is token 2 of the second.
        assert first[0].nonzero().tolist() == [[0, 1], [0, 16 + 5], [1, 8 + 2]]
        assert last[0].nonzero().tolist() == [[0, 2], [0, 16 + 6], [1, 8 + 2]]
        assert first.shape == last.shape == (1, 3, 4 * 8 + 1)

    def test_where_the_search_missed_no_answer_is_right(self) -> None:
        first, last = right_places(torch.tensor([[0, 30]]), torch.tensor([[[7, 8], [-1, -1]]]), 8)
        assert first.nonzero().tolist() == last.nonzero().tolist() == [[0, 0, 16]]


class TestSequences:
    def test_question_answer_end(self) -> None:
        questions, answers = torch.tensor([[11, 12, 0, 0], [13, 14, 15, 0]]), torch.tensor([[21, 22, 23], [24, 0, 0]])
        ids, targets = answer_sequences(questions, answers)
        x = IGNORE
        assert ids.tolist() == [
            [QUESTION, 11, 12, ANSWER, 21, 22, 23, END, END],
            [QUESTION, 13, 14, 15, ANSWER, 24, END, END, END],
        ]
        assert targets.tolist() == [[x, x, x, 21, 22, 23, END, x, x], [x, x, x, x, 24, END, x, x, x]]

    def test_after_a_text_that_is_learned_too(self) -> None:
        ids, targets = answer_sequences(torch.tensor([[11, 0]]), torch.tensor([[21, 0]]), torch.tensor([[31, 32, 33]]))
        x = IGNORE
        assert ids.tolist() == [[31, 32, 33, QUESTION, 11, ANSWER, 21, END, END]]
        assert targets.tolist() == [[32, 33, x, x, x, 21, END, x, x]]

    def test_every_target_is_the_token_that_comes_next(self) -> None:
        questions, answers = torch.randint(3, 200, (5, 4)), torch.randint(3, 200, (5, 3))
        ids, targets = answer_sequences(questions, answers, torch.randint(3, 200, (5, 9)))
        learned = targets[:, :-1] != IGNORE
        assert torch.equal(ids[:, 1:][learned], targets[:, :-1][learned])

    def test_the_loss_is_that_of_the_answer_alone(self, model: MambaLMHeadModel) -> None:
        ids, targets = answer_sequences(torch.tensor([[11, 12]]), torch.tensor([[21]]))
        likely = model(ids).logits[0].log_softmax(-1)
        expected = -(likely[3, 21] + likely[4, END]) / 2
        torch.testing.assert_close(answer_loss(model, None, ids, targets), expected)


class TestSearch:
    @torch.no_grad()
    def test_the_loss_counts_every_window_of_every_crop(self, model: MambaLMHeadModel) -> None:
        torch.manual_seed(1)
        crops, questions = torch.randint(1, 200, (2, 3 * BLOCK)), torch.randint(1, 200, (3, 4))
        crop, gold = torch.tensor([0, 1, 1]), torch.tensor([[[5, 6]], [[20, 23]], [[40, 40]]])
        searcher = model.searcher()
        loss = 0.0
        for question, own, ((first, last),) in zip(questions, crop.tolist(), gold.tolist(), strict=True):
            query = searcher.ask(question[None]).query
            every, right = 0.0, 0.0
            for number in range(2):
                keys = searcher.segment_keys(segments(crops[number], searcher.config)).flatten(0, 1)
                match = query.vectors[0] @ keys.bfloat16().float().T
                for start in range(0, 3 * BLOCK - WINDOW + 1, STRIDE):
                    best = match[:, start : start + WINDOW].amax(1)
                    mass = float((query.weights[0] @ best).exp())
                    every += mass
                    right += mass if number == own and start <= first and last < start + WINDOW else 0.0
            loss -= math.log(right / every) / 3
        batch = SearchBatch(crops, questions, crop, gold)
        assert search_loss(model, batch).item() == pytest.approx(loss, abs=0.1)  # scores are in bf16

    def test_a_copy_of_the_question_is_found_in_a_book(self, model: MambaLMHeadModel) -> None:
        torch.manual_seed(1)
        book, questions = torch.randint(1, 190, (20 * BLOCK + 3,)), torch.tensor([[193, 197, 0, 0], [199, 195, 198, 0]])
        book[101:103], book[300:303] = questions[0, :2], questions[1, :3]
        starts, scores = search_book(model, book, questions, 4)
        assert starts[0, 0] <= 101 < 103 <= starts[0, 0] + WINDOW
        assert starts[1, 0] <= 300 < 303 <= starts[1, 0] + WINDOW
        assert (scores.diff(dim=1) <= 0).all()
