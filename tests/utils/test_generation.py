"""Generation against a plain loop without a cache, and everything that can end or shape a text."""

import copy

import pytest
import torch

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.utils import cuda_graph
from mamba_ssm.utils.generation import InferenceParams, decode

VOCABULARY = 30


class Letters:
    """Id 0 is "a", 1 is "b", and so on; ids from 26 are pairs: 26 is ".a"."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i) if i < 26 else "." + chr(97 + i - 26) for i in ids)


class Recorder:
    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended
        self.values.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = MambaConfig(
        d_model=24, n_layer=2, vocab_size=VOCABULARY, pad_vocab_size_multiple=1, ssm_cfg={"d_state": 4}
    )
    model = MambaLMHeadModel(config)
    with torch.no_grad():  # untrained logits are too alike: sharper ones make texts that vary
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(0, VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def free(model, prompt):
    """What the model says when nothing stops it, sampled so that it varies."""
    return model.generate(prompt, 40, top_k=0, seed=7)


def test_greedy_is_the_argmax_loop_without_a_cache(model, prompt):
    ids = prompt
    for _ in range(20):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(prompt, max_length=25), ids)


def test_scores_are_the_logits_of_each_new_token(model, prompt):
    output = model.generate(prompt, 12, return_dict_in_generate=True, output_scores=True, top_k=0, seed=1)
    expected = model(output.sequences[:, :-1]).logits[:, 4:]
    torch.testing.assert_close(torch.stack(output.scores, 1), expected, atol=1e-4, rtol=1e-4)
    assert model.generate(prompt, 12, return_dict_in_generate=True).scores is None


def test_a_seed_or_a_generator_repeats_a_text(model, prompt):
    def say(**how):
        return model.generate(prompt, 30, top_k=0, temperature=1.5, **how)

    assert torch.equal(say(seed=5), say(seed=5))
    assert torch.equal(say(seed=5), say(generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(say(seed=5), say(seed=6))


def test_a_repetition_penalty_forbids_repeats_when_it_is_huge(model):
    out = model.generate(torch.tensor([[1, 2]]), 20, repetition_penalty=1e9)[0]
    positive_ran_out = out.unique().numel()
    plain = model.generate(torch.tensor([[1, 2]]), 20)[0].unique().numel()
    assert positive_ran_out == 20 > plain


def test_rows_end_one_by_one(model, prompt, free):
    eos = int(free[0, 9])
    ends = [next((t for t in range(5, 40) if row[t] == eos), 40) for row in free.tolist()]
    assert len(set(ends)) > 1, "the rows must end at different times for this test to say anything"
    out = model.generate(prompt, 40, top_k=0, seed=7, eos_token_id=eos)
    assert out.shape[1] == min(max(ends) + 1, 40)
    for row, (end, expected) in enumerate(zip(ends, free, strict=True)):
        assert torch.equal(out[row, :end], expected[:end])
        assert (out[row, end:] == eos).all()


def test_stop_strings_end_rows_and_cut_texts(model, prompt, free):
    letters = Letters()
    said = [letters.decode(row) for row in free[:, 5:].tolist()]
    stop = said[0][6:9]  # may begin or end within a token
    ends = [text.find(stop) for text in said]
    assert ends[0] >= 0
    out = model.generate(
        prompt, 40, top_k=0, seed=7, stop_strings=["never said", stop], tokenizer=letters, return_dict_in_generate=True
    )
    for text, end, full in zip(out.texts, ends, said, strict=True):
        assert text == (full[:end] if end >= 0 else full[: len(text)])
        assert stop not in text
    generated = letters.decode(out.sequences[0, 5:].tolist())
    assert generated.startswith(said[0][: ends[0] + len(stop)])


def test_generation_stops_when_every_row_has(model, prompt):
    alone = model.generate(prompt[:1], 40, top_k=0, seed=7)
    stop = Letters().decode(alone[0, 8:11].tolist())
    out = model.generate(prompt[:1], 40, top_k=0, seed=7, stop_strings=stop, tokenizer=Letters())
    assert out.shape[1] <= 11
    assert torch.equal(out, alone[:, : out.shape[1]])


def test_a_streamer_gets_the_prompt_then_each_token_then_the_end(model, prompt):
    streamer = Recorder()
    out = model.generate(prompt, 11, streamer=streamer)
    assert torch.equal(streamer.values[0], prompt)
    assert torch.equal(torch.stack(streamer.values[1:], 1), out[:, 5:])
    assert streamer.ended == 1


def test_transformers_text_streamer_understands_it(model, prompt, capsys):
    transformers = pytest.importorskip("transformers")

    class Words(Letters):
        def decode(self, ids, **_):
            return super().decode(ids.tolist() if hasattr(ids, "tolist") else ids)

    out = model.generate(prompt[:1], 15, streamer=transformers.TextStreamer(Words(), skip_prompt=True))
    assert capsys.readouterr().out.strip() == Letters().decode(out[0, 5:].tolist())


def test_teacher_outputs_replace_what_would_be_sampled(model, prompt, free):
    out = model.generate(prompt, 20, teacher_outputs=free, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(out.sequences, free[:, :20])
    torch.testing.assert_close(torch.stack(out.scores, 1), model(free[:, :19]).logits[:, 4:], atol=1e-4, rtol=1e-4)


def test_prompts_of_unequal_length_are_padded_on_the_left(model, prompt):
    lengths = [5, 2, 4]
    mask = torch.tensor([[t >= 5 - n for t in range(5)] for n in lengths])
    together = model.generate(prompt, 15, attention_mask=mask)
    for row, n in enumerate(lengths):
        alone = model.generate(prompt[row : row + 1, 5 - n :], 10 + n)
        assert torch.equal(together[row, 5 - n :], alone[0])
    with pytest.raises(ValueError, match="on the left"):
        model.generate(prompt, 15, attention_mask=mask.flip(1))


def test_decode_is_generate(model, prompt):
    assert torch.equal(decode(prompt, model, 15).sequences, model.generate(prompt, 15))


def test_cuda_graphs_on_a_cpu_decode_normally_and_say_so(model, prompt, capsys):
    assert torch.equal(model.generate(prompt, 12, cg=True), model.generate(prompt, 12))
    assert capsys.readouterr().err.count("cg=True") == 1


def test_timing_is_printed_on_request(model, prompt, capsys):
    model.generate(prompt, 8, enable_timing=True)
    assert "decoding time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prompt_length", "how", "words"),
    [
        (0, {"max_length": 5}, "prompt is empty"),
        (5, {"max_length": 5}, "max_length 5 counts the prompt"),
        (5, {"max_length": 9, "stop_strings": ["."]}, "tokenizer"),
        (5, {"max_length": 9, "seed": 1, "generator": torch.Generator()}, "pass one"),
    ],
)
def test_misuse_says_what_to_do(model, prompt_length, how, words):
    with pytest.raises(ValueError, match=words):
        model.generate(torch.zeros(1, prompt_length, dtype=torch.long), **how)


def test_inference_params_are_the_originals():
    params = InferenceParams(max_seqlen=9, max_batch_size=2, lengths_per_sample=torch.ones(2))
    params.seqlen_offset = 4
    params.key_value_memory_dict[0] = "kept"
    params.reset(20, 1)
    assert (params.max_seqlen, params.max_batch_size, params.seqlen_offset, params.batch_size_offset) == (20, 1, 0, 0)
    assert params.key_value_memory_dict == {0: "kept"}
    assert not params.lengths_per_sample.any()


def test_an_allocated_cache_continues_like_one_made_on_the_way(model, prompt):
    cache = model.allocate_inference_cache(3, 10)
    params = InferenceParams(10, 3, key_value_memory_dict=cache)
    first = model(prompt[:, :3], inference_params=params).logits
    params.seqlen_offset = 3
    second = model(prompt[:, 3:], inference_params=params, num_last_tokens=1).logits
    whole = model(prompt).logits
    torch.testing.assert_close(first, whole[:, :3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, whole[:, -1:], atol=1e-5, rtol=1e-5)


def test_half_precision_generates(model, prompt):
    exact = model.generate(prompt, 12, return_dict_in_generate=True, output_scores=True)
    halves = {"parameters": copy.deepcopy(model).bfloat16(), "autocast": model}
    for name, half in halves.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
            out = half.generate(
                prompt, 12, teacher_outputs=exact.sequences, return_dict_in_generate=True, output_scores=True
            )
        for rough, score in zip(out.scores, exact.scores, strict=True):
            assert (rough - score).abs().max() < 0.1 * score.abs().max(), name


def test_a_prompt_is_captured_when_its_shape_comes_again(monkeypatch):
    captured = []

    def capture(cache, model, batch, length, *, offset, last):
        assert (offset, last) == (0, 1)
        captured.append((batch, length))
        return lambda ids: ids

    monkeypatch.setattr(cuda_graph, "_capture", capture)
    cache = cuda_graph.DecodingCGCache(InferenceParams(9, 2), ())
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert cache.run_prompt(None, ids) is None
    assert cache.run_prompt(None, ids) is ids
    assert cache.run_prompt(None, ids) is ids
    long = torch.zeros(1, cuda_graph.GRAPHED_PROMPT + 1, dtype=torch.long)
    assert [cache.run_prompt(None, long) for _ in range(3)] == [None] * 3
    for length in range(6, 6 + cuda_graph.KEPT_PROMPTS):
        assert cache.run_prompt(None, torch.zeros(2, length, dtype=torch.long)) is None
    assert cache.run_prompt(None, ids) is None  # forgotten: only so many are kept
    assert captured == [(2, 5)]


@pytest.mark.gpu
def test_cuda_graphs_say_the_same_as_plain_decoding(model, prompt):
    model, prompt = copy.deepcopy(model).cuda(), prompt.cuda()
    for rows in (3, 1, 2, 3):  # one capture a batch size, used again
        plain = model.generate(prompt[:rows], 30, return_dict_in_generate=True, output_scores=True)
        graph = model.generate(prompt[:rows], 30, cg=True, return_dict_in_generate=True, output_scores=True)
        torch.testing.assert_close(torch.stack(graph.scores), torch.stack(plain.scores), atol=1e-4, rtol=1e-4)
        assert torch.equal(graph.sequences, plain.sequences)
    cache = model._decoding_cache
    assert set(cache.callables) == {(3, 1), (1, 1), (2, 1)}
    assert {shape for shape, run in cache.prompts.items() if run is not None} == {(3, 5)}  # the one that came twice
