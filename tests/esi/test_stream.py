"""model(input_ids, question_ids): the same for any cut of the text, blind to what comes later, silent until trained."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_esi import SIZES, small_model, tokens

from mamba_ssm.esi.config import ESIConfig
from mamba_ssm.esi.module import segments
from mamba_ssm.esi.stream import ESIStream
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.generation import InferenceParams

BLOCK = SIZES["segment"] - SIZES["warmup"]
WINDOW, TOP_K = SIZES["window"], SIZES["top_k"]
LENGTH = 4 * BLOCK + 5

pytestmark = pytest.mark.usefixtures("without_gradients")


def read_in_parts(model: MambaLMHeadModel, ids: torch.Tensor, question: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    params = InferenceParams(max_seqlen=ids.shape[1], max_batch_size=len(ids))
    logits = []
    for part in ids.split(sizes, 1):
        out = model(part, question, inference_params=params)
        params.seqlen_offset += part.shape[1]
        logits.append(out.logits)
    return torch.cat(logits, 1)


class TestAnyCut:
    @settings(max_examples=25)
    @given(st.lists(st.integers(0, LENGTH), max_size=6))  # empty parts too
    def test_of_the_text_gives_the_same_logits(self, cuts: list[int]) -> None:
        model, ids, question = small_model(), tokens(2, LENGTH), tokens(2, 6, seed=2)
        edges = [0, *sorted(cuts), LENGTH]
        sizes = [b - a for a, b in pairwise(edges)]
        whole = model(ids, question)
        torch.testing.assert_close(read_in_parts(model, ids, question, sizes), whole.logits, atol=2e-4, rtol=1e-4)

    def test_token_by_token(self, model: MambaLMHeadModel) -> None:
        ids, question = tokens(2, LENGTH), tokens(2, 6, seed=2)
        whole = model(ids, question).logits
        torch.testing.assert_close(read_in_parts(model, ids, question, [1] * LENGTH), whole, atol=2e-4, rtol=1e-4)
        # The test has teeth: what is found changes the logits, from the second block on.
        plain = model(ids).logits
        assert torch.equal(whole[:, :BLOCK], plain[:, :BLOCK])
        assert (whole - plain)[:, BLOCK:].abs().amax(-1).min() > 1e-3

    def test_the_last_tokens_alone(self, model: MambaLMHeadModel) -> None:
        ids, question = tokens(1, LENGTH), tokens(1, 6, seed=2)
        whole = model(ids, question).logits
        for n in (1, 5, 6, BLOCK + 7, LENGTH):
            last = model(ids, question, num_last_tokens=n).logits
            torch.testing.assert_close(last, whole[:, -n:], atol=2e-4, rtol=1e-4)

    def test_a_new_text_with_the_same_cache_starts_afresh(self, model: MambaLMHeadModel) -> None:
        params = InferenceParams(max_seqlen=LENGTH, max_batch_size=1)
        model(tokens(1, LENGTH, seed=8), tokens(1, 6, seed=9), inference_params=params)
        params.reset(LENGTH, 1)
        ids, question = tokens(1, LENGTH), tokens(1, 6, seed=2)
        again = model(ids, question, inference_params=params)
        assert again.hits.indices.tolist() == model(ids, question).hits.indices.tolist()
        torch.testing.assert_close(again.logits, model(ids, question).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_later_tokens_change_nothing_before_them(model: MambaLMHeadModel, changed: int) -> None:
    ids, question = tokens(1, LENGTH), tokens(1, 6, seed=2)
    other = ids.clone()
    other[:, changed:] = tokens(1, LENGTH - changed, seed=3)
    torch.testing.assert_close(
        model(other, question).logits[:, :changed], model(ids, question).logits[:, :changed], atol=1e-5, rtol=1e-5
    )


def test_the_question_matters(model: MambaLMHeadModel) -> None:
    ids = tokens(1, LENGTH)
    one, two = (model(ids, tokens(1, 6, seed=seed)).logits for seed in (2, 3))
    assert (one - two)[:, BLOCK:].abs().max() > 1e-3


def test_rows_and_padded_questions_do_not_matter(model: MambaLMHeadModel) -> None:
    """A question of three tokens in a batch beside one of four is as it is alone."""
    ids = tokens(2, LENGTH)
    long, short = tokens(1, 4, seed=2), tokens(1, 3, seed=3)
    both = model(ids, torch.cat([long, F.pad(short, (0, 1))]))
    alone = model(ids[1:], short)
    assert both.hits.indices[1].tolist() == alone.hits.indices[0].tolist()
    torch.testing.assert_close(both.logits[1:], alone.logits, atol=2e-4, rtol=1e-4)


class TestUntrained:
    def test_without_esi_the_logits_stay_bit_for_bit(self) -> None:
        plain = small_model(esi=None)
        ids, question = tokens(2, 300), tokens(2, 6, seed=2)
        out = plain(ids, question)
        assert torch.equal(out.logits, plain(ids).logits)
        assert torch.equal(plain(ids, question, num_last_tokens=3).logits, plain(ids, num_last_tokens=3).logits)
        assert out.hits.indices.shape == (2, ESIConfig().top_k)

    def test_with_closed_gates_too(self) -> None:
        model = small_model(gates=0.0)
        ids, question = tokens(2, LENGTH), tokens(2, 6, seed=2)
        assert torch.equal(model(ids, question).logits, model(ids).logits)

    def test_a_checkpoint_whose_config_asks_for_esi_and_has_no_weights(self, tmp_path) -> None:
        from safetensors.torch import load_file, save_file

        model = small_model()
        model.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if not k.startswith("esi.")}, path)
        loaded = MambaLMHeadModel.from_pretrained(tmp_path)
        ids = tokens(1, LENGTH)
        assert torch.equal(loaded(ids, tokens(1, 6)).logits, model(ids).logits)

    def test_a_checkpoint_with_esi_comes_back_with_it(self, tmp_path, model: MambaLMHeadModel) -> None:
        model.save_pretrained(tmp_path)
        loaded = MambaLMHeadModel.from_pretrained(tmp_path)
        ids, question = tokens(1, LENGTH), tokens(1, 6, seed=2)
        assert torch.equal(loaded(ids, question).logits, model(ids, question).logits)


class TestHits:
    def test_shape_order_and_weights(self, model: MambaLMHeadModel) -> None:
        hits = model(tokens(2, LENGTH), tokens(2, 6, seed=2)).hits
        assert hits.indices.shape == hits.scores.shape == hits.weights.shape == (2, TOP_K)
        assert (hits.scores.diff(dim=1) <= 0).all()
        torch.testing.assert_close(hits.weights, hits.scores.softmax(1))
        # Only finished blocks are searched.
        assert (hits.indices >= 0).all()
        assert (hits.indices + WINDOW <= 4 * BLOCK).all()
        assert (hits.indices % (WINDOW // 2) == 0).all()

    def test_before_the_first_block_is_finished_there_are_none(self, model: MambaLMHeadModel) -> None:
        hits = model(tokens(1, BLOCK - 1), tokens(1, 6, seed=2)).hits
        assert hits.indices.tolist() == [[-1] * TOP_K]
        assert hits.weights.tolist() == [[0.0] * TOP_K]

    def test_a_planted_copy_of_the_question_is_found(self) -> None:
        plain = small_model(esi=None)
        config = plain.searcher().config
        ids, question = tokens(1, 5 * config.block), tokens(1, 6, seed=2)
        ids[ids == question[0, 0]] = 1
        at = 2 * config.block + 70
        ids[0, at : at + 6] = question[0]
        best = int(plain(ids, question).hits.indices[0, 0])
        assert best <= at
        assert at + 6 <= best + config.window


def stream_keys(model: MambaLMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    config = model.searcher().config
    return model.searcher().segment_keys(segments(ids, config)).flatten(0, 1)


class TestKeys:
    def test_a_key_depends_neither_on_the_length_nor_on_what_follows(self, model: MambaLMHeadModel) -> None:
        ids = tokens(5 * BLOCK)
        keys = stream_keys(model, ids)
        torch.testing.assert_close(stream_keys(model, ids[: 2 * BLOCK]), keys[: 2 * BLOCK])
        other = ids.clone()
        other[2 * BLOCK + 3 :] = tokens(3 * BLOCK - 3, seed=5)
        torch.testing.assert_close(stream_keys(model, other)[: 2 * BLOCK + 3], keys[: 2 * BLOCK + 3])
        # And reaches back no further than its segment.
        other = ids.clone()
        other[: 2 * BLOCK - SIZES["warmup"]] = tokens(2 * BLOCK - SIZES["warmup"], seed=5)
        torch.testing.assert_close(stream_keys(model, other)[2 * BLOCK : 3 * BLOCK], keys[2 * BLOCK : 3 * BLOCK])

    def test_it_is_the_projected_state_of_the_first_layers(self, model: MambaLMHeadModel) -> None:
        ids = tokens(3 * BLOCK)
        begin = 2 * BLOCK - SIZES["warmup"]
        x = model.backbone.embedding(ids[begin : 3 * BLOCK][None])
        layer = model.backbone.layers[0]
        state = x + layer.mixer(layer.norm(x))
        search = model.esi.search
        by_hand = F.normalize(search.norm(state) @ search.key.weight.T, dim=-1)[0, SIZES["warmup"] :]
        torch.testing.assert_close(stream_keys(model, ids)[2 * BLOCK :], by_hand, atol=1e-5, rtol=1e-4)

    def test_the_stream_keeps_the_tokens_of_its_windows(self, model: MambaLMHeadModel) -> None:
        ids = tokens(2, LENGTH)
        stream = ESIStream(model.searcher(), tokens(2, 6, seed=2))
        for part in ids.split(7, 1):
            runs = stream.advance(part)
        memory = runs[-1][1]
        assert memory is not None
        for row in range(2):
            for window, start in zip(memory.ids[row], stream.hits.indices[row].tolist(), strict=True):
                assert torch.equal(window, ids[row, start : start + WINDOW])


def test_memory_does_not_grow_with_the_text(model: MambaLMHeadModel) -> None:
    def size(value: object) -> int:
        if torch.is_tensor(value):
            return value.untyped_storage().nbytes()
        if isinstance(value, dict | list | tuple):
            return sum(map(size, value.values() if isinstance(value, dict) else value))
        return size(vars(value)) if type(value).__module__.startswith("mamba_ssm.esi") and vars(value) else 0

    stream = ESIStream(model.searcher(), tokens(1, 6, seed=2))
    sizes = []
    for block in range(12):
        stream.advance(tokens(1, BLOCK, seed=block))
        sizes.append(size({k: v for k, v in vars(stream).items() if k != "searcher"}))
    assert sizes[0] > 0
    assert sizes[-1] == sizes[2]


@pytest.mark.parametrize("length", [3, BLOCK, 2 * BLOCK + 5])
def test_generation_with_a_question(model: MambaLMHeadModel, length: int) -> None:
    ids, question = tokens(2, length), tokens(2, 6, seed=2)
    said = model.generate(ids, max_length=length + BLOCK + 4, question_ids=question, vocab_size=101)
    expected = ids
    for _ in range(BLOCK + 4):
        expected = torch.cat([expected, model(expected, question).logits[:, -1:, :101].argmax(-1)], 1)
    assert torch.equal(said, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype: torch.dtype) -> None:
    model = small_model().to(dtype)
    out = model(tokens(1, LENGTH), tokens(1, 6, seed=2))
    assert out.logits.dtype == dtype
    assert out.logits.isfinite().all()


def test_a_question_must_have_tokens(model: MambaLMHeadModel) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        model(tokens(1, 5), torch.zeros(1, 3, dtype=torch.long))
