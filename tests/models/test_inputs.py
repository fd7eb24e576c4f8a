"""Texts in any split, packing and padding, and states that go from one to the next: always the same model."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mamba_ssm import Mamba, MambaLMHeadModel
from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.modules.block import Block
from mamba_ssm.utils.cuda_graph import DecodingCGCache
from mamba_ssm.utils.generation import InferenceParams

VOCABULARY = 24
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


def new_model(**changes) -> MambaLMHeadModel:
    torch.manual_seed(0)
    config = {"d_model": 12, "n_layer": 2, "vocab_size": VOCABULARY, "ssm_cfg": {"d_state": 4}} | changes
    model = MambaLMHeadModel(MambaConfig(**config))
    with torch.no_grad():  # the untrained model hardly mixes: make what it remembers matter
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model() -> MambaLMHeadModel:
    return new_model()


def unpickled(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


def text(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def gradients(model: MambaLMHeadModel, logits: list[Tensor]) -> Tensor:
    """Of all weights, in one vector, of a loss to which each of the logits (L, V) adds its share."""
    model.zero_grad()
    shares = [(part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in logits]
    torch.stack(shares).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_same(got: list[Tensor], expected: list[Tensor], model: MambaLMHeadModel) -> None:
    """Logits (L, V) of texts, and the gradients of the weights."""
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    ours, theirs = gradients(model, got), gradients(model, expected)
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@settings(max_examples=15)
@given(LENGTHS)
def test_cu_seqlens_packs_texts_in_a_row(model, lengths):
    texts = [text(n, i) for i, n in enumerate(lengths)]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    packed = model(torch.cat(texts, 1), cu_seqlens=ends.int()).logits[0]
    assert_same(list(packed.split(lengths)), [model(ids).logits[0] for ids in texts], model)


@st.composite
def packed_rows(draw):
    """Rows of texts with padding between them and around: for each row a list of (padding before, tokens)."""
    row = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=3)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    length = max(sum(pad + n for pad, n in row) for row in rows) + draw(st.integers(0, 3))
    return rows, length, draw(st.integers(0, length)), draw(st.integers(0, 5)), draw(st.booleans())


@settings(max_examples=40)
@given(packed_rows())
def test_any_packing_and_padding_in_any_split_is_each_text_alone(model, case):
    """Two chunks, cut anywhere, the second padded in front of its texts too; padding may bear any text's number."""
    rows, length, cut, gap, own_number = case
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, VOCABULARY, (len(rows), length), generator=generator)
    seq_idx = torch.full((len(rows), length), -1 if own_number else 3)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    spans = []
    for r, row in enumerate(rows):
        at = 0
        for number, (pad, n) in enumerate(row):
            at += pad
            spans.append((r, slice(at, at + n)))
            seq_idx[r, at : at + n] = number
            mask[r, at : at + n] = True
            at += n

    def numbers(r: int, part: slice) -> list[int]:
        return seq_idx[r, part][mask[r, part]].tolist()

    first, second = slice(0, cut), slice(cut, length)
    before = model(ids[:, first], attention_mask=mask[:, first], seq_idx=seq_idx[:, first], return_states=True)
    goes_on = torch.tensor(
        [not numbers(r, second) or numbers(r, first)[-1:] == numbers(r, second)[:1] for r in range(len(rows))]
    ).view(-1, 1, 1)
    states = [tuple(part * goes_on for part in state) for state in before.states]
    after = model(
        torch.nn.functional.pad(ids[:, second], (gap, 0)),
        attention_mask=torch.nn.functional.pad(mask[:, second], (gap, 0)),
        seq_idx=torch.nn.functional.pad(seq_idx[:, second], (gap, 0), value=7),
        initial_states=states,
        return_states=True,
    )
    logits = torch.cat([before.logits, after.logits[:, gap:]], 1)
    alone = [model(ids[r : r + 1, span], return_states=True) for r, span in spans]
    assert_same([logits[span_row, span] for span_row, span in spans], [out.logits[0] for out in alone], model)
    last = {r: out.states for (r, _), out in zip(spans, alone, strict=True)}
    for r, expected in last.items():
        for ours, theirs in zip(after.states, expected, strict=True):
            for part, whole in zip(ours, theirs, strict=True):
                torch.testing.assert_close(part[r : r + 1], whole, **CLOSE)


def test_padding_in_front_of_a_chunk_does_not_part_it_from_its_state(model):
    ids = text(8)
    states = model(ids[:, :5], return_states=True).states
    chunk, mask = torch.cat([ids[:, :2], ids[:, 5:]], 1), torch.tensor([[0, 0, 1, 1, 1]])
    for seq_idx in (None, torch.tensor([[9, 9, 0, 0, 0]])):
        logits = model(chunk, initial_states=states, attention_mask=mask, seq_idx=seq_idx).logits
        torch.testing.assert_close(logits[:, 2:], model(ids).logits[:, 5:], **CLOSE)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 4))
def test_any_split_of_a_padded_prompt_through_the_cache_is_the_whole_text(model, lengths, pad):
    """Two rows, the second padded on its left; the cache takes chunks of any length, and so do explicit states."""
    length = sum(lengths) + pad + 1
    ids = torch.cat([text(length, 1), text(length, 2)])
    mask = torch.arange(length) >= torch.tensor([[0], [pad]])
    params, states = InferenceParams(length, 2), None
    cached, explicit = [], []
    for n in (pad + 1, *lengths):
        part = slice(params.seqlen_offset, params.seqlen_offset + n)
        with torch.no_grad():
            cached.append(model(ids[:, part], inference_params=params, attention_mask=mask[:, part]).logits)
        out = model(ids[:, part], initial_states=states, return_states=True, attention_mask=mask[:, part])
        explicit.append(out.logits)
        states = out.states
        params.seqlen_offset += n
    expected = [model(ids[:1]).logits[0], model(ids[1:, pad:]).logits[0]]
    for row, (got, whole) in enumerate(zip(torch.cat(cached, 1), expected, strict=True)):
        torch.testing.assert_close(got[row * pad :], whole, **CLOSE)
    assert_same([torch.cat(explicit, 1)[0], torch.cat(explicit, 1)[1, pad:]], expected, model)
    for layer, state in enumerate(states):
        for ours, theirs in zip(params.key_value_memory_dict[layer], state, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_block_and_a_layer_take_packed_rows_as_well():
    torch.manual_seed(0)
    block = Block(8, Mamba)
    x = torch.randn(1, 7, 8)
    for module in (block.mixer, block):

        def run(x, module=module, **how):
            out = module(x, **how)
            return out[0] if isinstance(out, tuple) else out

        alone = torch.cat([run(x[:, :3]), run(x[:, 3:])], 1)
        torch.testing.assert_close(run(x, cu_seqlens=torch.tensor([0, 3, 7])), alone, **CLOSE)
        torch.testing.assert_close(run(x, seq_idx=torch.tensor([[5, 5, 5, 2, 2, 2, 2]])), alone, **CLOSE)
        assert not torch.allclose(run(x), alone, **CLOSE)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"seq_idx": torch.zeros(1, 5)}, "a sequence for each token"),
        ({"cu_seqlens": torch.tensor([0, 6])}, "pass seq_idx"),
        ({"cu_seqlens": torch.tensor([0, 6]), "seq_idx": torch.zeros(2, 6)}, "pass one"),
        ({"initial_states": []}, "give one a layer"),
        ({"initial_states": [(torch.zeros(1, 24, 4), torch.zeros(1, 24, 4))] * 2}, "this layer and batch need"),
        ({"question_ids": torch.ones(2, 3, dtype=torch.long), "return_states": True}, "inference_params"),
        ({"question_ids": torch.ones(2, 3, dtype=torch.long), "seq_idx": torch.zeros(2, 6)}, "one text a row"),
    ],
)
def test_misuse_says_what_to_do(model, how, words):
    with pytest.raises(ValueError, match=words):
        model(text(12).view(2, 6), **how)


def test_states_from_disk_go_on_as_if_nothing_had_happened(model, tmp_path):
    ids = text(20).view(2, 10)
    path = tmp_path / "text.safetensors"
    states = model(ids[:, :6], return_states=True).states
    for _ in range(2):  # the second time over the first
        model.save_states(states, path)
    assert [file.name for file in tmp_path.iterdir()] == ["text.safetensors"]
    loaded = new_model(esi={"d_read": 32, "n_read": 1}).load_states(path)  # what ESI adds does not matter
    expected = model(ids).logits[:, 6:]
    torch.testing.assert_close(model(ids[:, 6:], initial_states=loaded).logits, expected, **CLOSE)
    params = InferenceParams(10, 2, seqlen_offset=6, key_value_memory_dict=dict(enumerate(loaded)))
    torch.testing.assert_close(model(ids[:, 6:], inference_params=params).logits, expected, **CLOSE)


def test_states_of_a_cache_can_be_saved_too(model, tmp_path):
    params = InferenceParams(5, 1)
    model(text(5), inference_params=params)
    model.save_states([params.key_value_memory_dict[layer] for layer in range(2)], tmp_path / "cache")
    expected = [tuple(state) for state in model(text(5), return_states=True).states]
    torch.testing.assert_close(model.load_states(tmp_path / "cache"), expected)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"n_layer": 3}, "another model, with another n_layer"),
        ({"ssm_cfg": {"d_state": 8}}, "another ssm_cfg"),
        ({"dtype": torch.bfloat16}, "a model in float32"),
    ],
)
def test_states_of_another_model_are_refused(model, tmp_path, other, words):
    model.save_states(model(text(5), return_states=True).states, tmp_path / "states")
    dtype = other.pop("dtype", torch.float32)
    with pytest.raises(CheckpointError, match=words):
        new_model(**other).to(dtype).load_states(tmp_path / "states")


def test_files_that_hold_no_states_are_refused(model, tmp_path):
    path = tmp_path / "states"
    with pytest.raises(CheckpointError, match="there is no file"):
        model.load_states(path)
    path.write_bytes(b"no safetensors file")
    with pytest.raises(CheckpointError, match="damaged"):
        model.load_states(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds no states"):
        model.load_states(path)
    states = model(text(5), return_states=True).states
    model.save_states(states, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        model.load_states(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda states: states[:1], "2 tensors, and 2 layers need two each"),
        (lambda states: [(conv[..., 1:], ssm) for conv, ssm in states], "has the shape"),
        (lambda states: [states[0], tuple(part[:1] for part in states[1])], "has the shape"),
        (lambda states: [(conv, ssm.half()) for conv, ssm in states], "float16"),
        (lambda states: [(conv.long(), ssm) for conv, ssm in states], "int64"),
    ],
)
def test_what_is_no_state_is_not_saved_and_leaves_the_file_that_was_there(model, tmp_path, change, words):
    path = tmp_path / "states"
    states = model(text(10).view(2, 5), return_states=True).states
    model.save_states(states, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=words):
        model.save_states(change(states), path)
    assert path.read_bytes() == before


def test_a_write_that_fails_leaves_the_file_that_was_there(model, tmp_path, monkeypatch):
    path = tmp_path / "states"
    states = model(text(5), return_states=True).states
    model.save_states(states, path)
    before = path.read_bytes()

    def full(_: object, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        model.save_states(states, path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_a_model_that_moves_in_the_middle_of_a_text_is_told_to_start_again():
    model, params = new_model(), InferenceParams(9, 1)
    with torch.no_grad():
        model(text(5), inference_params=params)
        params.seqlen_offset = 5
        model.to(torch.bfloat16)
        for more in (1, 3):
            with pytest.raises(ValueError, match=r"float32 on cpu, which is now in torch\.bfloat16 .*start it again"):
                model(text(more), inference_params=params)
        params.reset(9, 1)
        assert model(text(5), inference_params=params).logits.dtype == torch.bfloat16
        params.seqlen_offset = 5
        assert model(text(1), inference_params=params).logits.isfinite().all()
    model, params, question = (
        new_model(n_layer=3, esi={"d_read": 32, "n_read": 1}),
        InferenceParams(500, 1),
        text(4).clamp(min=1),
    )
    with torch.no_grad():
        model(text(210), question, inference_params=params)
        params.seqlen_offset = 210
        with pytest.raises(ValueError, match="start it again"):
            model.to(torch.bfloat16)(text(250), question, inference_params=params)
    layer, params = Mamba(8, layer_idx=0), InferenceParams(9, 1)
    layer(torch.randn(1, 3, 8), inference_params=params)
    for params.seqlen_offset in (0, 3):
        with pytest.raises(ValueError, match=r"on cpu, which is now in torch\.float32 on meta: start it again"):
            layer.to("meta")(torch.randn(1, 3, 8, device="meta"), inference_params=params)


def test_models_are_copied_and_pickled_without_their_graphs(tmp_path):
    model = new_model()
    expected = model.generate(text(4), 9)
    step = (step for step in ())  # like a CUDA graph, a thing that cannot be copied
    model._decoding_cache = DecodingCGCache(InferenceParams(9, 1), ("key",), {(1, 1): step}, pool=step)
    for twin in (copy.deepcopy(model), unpickled(model)):
        assert twin._decoding_cache is None
        assert torch.equal(twin.generate(text(4), 9), expected)
        assert twin.lm_head.weight is twin.backbone.embedding.weight is not model.lm_head.weight
    assert model._decoding_cache.pool is step
    config = MambaConfig(d_model=8, n_layer=1, vocab_size=20, esi={"d_read": 32})
    assert unpickled(config) == copy.deepcopy(config) == config


def test_the_document_runs_as_it_stands(tmp_path, monkeypatch):
    document = Path(__file__).parents[2] / "docs/inputs.md"
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)), names)
    whole = names["model"](names["ids"]).logits
    torch.testing.assert_close(names["second"].logits, whole[:, 7:], **CLOSE)
    torch.testing.assert_close(names["logits"], whole[:, -1:], **CLOSE)
    logits, _ = names["program"].module()(names["ids"][:, 7:8], names["first"].states)
    torch.testing.assert_close(logits, whole[:, 7:8], **CLOSE)
