"""The names of the original packages: docs/compatibility.md walked row by row, and the arguments that they take."""

import dataclasses
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mamba_ssm.errors import LeftOutError
from mamba_ssm.models import mixer_seq_simple
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.modules import mamba_simple
from mamba_ssm.ops import selective_scan_interface as scan
from mamba_ssm.ops.triton import layer_norm, selective_state_update
from mamba_ssm.utils import generation, hf

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (\S+) \|$", TABLE, re.M)


def test_every_row_of_the_tables_is_read():
    lines = [line for line in TABLE.splitlines() if line.startswith("| `")]
    assert len(ROWS) == len(lines)
    assert len({name for name, _, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("name", "here", "tested"), ROWS, ids=[name for name, _, _ in ROWS])
def test_a_row(name, here, tested):
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not in this environment")
    module, _, last = name.rpartition(".")
    statement = f"from {module} import {last}"
    kind = re.match(r"same|left out|absent", here)
    assert kind is not None
    if kind[0] == "same":
        exec(statement, {})
        assert re.search(rf"\b{last}\b", (ROOT / tested).read_text(encoding="utf-8"))
    elif kind[0] == "left out":
        for code in (statement, f"import {name if last.islower() else module}"):
            if code != "import mamba_ssm":
                with pytest.raises(LeftOutError, match=r"^mamba-esi, the mamba_ssm .* lacks [^\n]+: .* mamba-ssm "):
                    exec(code, {})
    else:
        with pytest.raises(ImportError, match=f"{last}|{module}"):
            exec(statement, {})


def test_whoever_probes_for_what_is_left_out_finds_nothing():
    import mamba_ssm.modules
    import mamba_ssm.ops.triton

    with pytest.raises(LeftOutError):
        from mamba_ssm import Mamba2  # noqa: F401
    for home, name in ((mamba_ssm, "Mamba2"), (mamba_ssm.modules, "mha"), (mamba_ssm.ops.triton, "ssd_combined")):
        assert not hasattr(home, name)
        assert getattr(home, name, None) is None
        assert f"{home.__name__}.{name}" not in sys.modules
    assert not {"Mamba2", "Mamba3"} & {*dir(mamba_ssm), *mamba_ssm.__all__}
    with pytest.raises(AttributeError):
        _ = mamba_ssm.Mamba2


def test_importing_the_package_reaches_its_modules_as_attributes():
    code = (
        "import mamba_ssm; mamba_ssm.ops.triton.layer_norm.RMSNorm, mamba_ssm.modules.mamba_simple.Mamba,"
        "mamba_ssm.ops.selective_scan_interface.selective_scan_fn, mamba_ssm.models.config_mamba.MambaConfig,"
        "mamba_ssm.ops.triton.selective_state_update.selective_state_update, mamba_ssm.utils.generation.InferenceParams"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sentence_is_there_without_torch():
    """A probe costs nothing, and its answer is the last line of the traceback."""
    code = (
        "import sys\ntry:\n from mamba_ssm.modules.mamba2 import Mamba2\nfinally:\n assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mamba_ssm.errors.LeftOutError: mamba-esi, ")


def test_transformers_takes_its_own_path_for_mamba_2():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_heads": 2, "head_dim": 16, "state_size": 4, "num_hidden_layers": 1, "n_groups": 1}
    model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(vocab_size=9, **sizes))
    assert model(torch.arange(5)[None]).logits.shape == (1, 5, 9)


SCAN = "u delta A B C D z delta_bias delta_softplus return_last_state"
INNER = "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight out_proj_weight out_proj_bias A B C D delta_bias"
INNER += " B_proj_bias C_proj_bias delta_softplus"
STEP = "state x dt A B C D z dt_bias dt_softplus"
NORM = "x weight bias residual"
STACK = "ssm_cfg attn_layer_idx attn_cfg norm_epsilon rms_norm"
SAMPLING = "top_k top_p min_p temperature"
DECODING = "repetition_penalty eos_token_id teacher_outputs vocab_size cg enable_timing output_scores streamer"
MODEL = mixer_seq_simple.MambaLMHeadModel
ARGUMENTS = {  # those of the original, in its order
    scan.selective_scan_fn: SCAN,
    scan.selective_scan_ref: SCAN,
    scan.mamba_inner_fn: INNER,
    scan.mamba_inner_ref: INNER,
    selective_state_update.selective_state_update: STEP,
    selective_state_update.selective_state_update_ref: STEP,
    layer_norm.layer_norm_fn: f"{NORM} eps prenorm residual_in_fp32 is_rms_norm",
    layer_norm.rms_norm_fn: f"{NORM} prenorm residual_in_fp32 eps",
    layer_norm.RMSNorm: "hidden_size eps device dtype",
    mamba_simple.Mamba: "d_model d_state d_conv expand dt_rank dt_min dt_max dt_init dt_scale dt_init_floor conv_bias "
    "bias use_fast_path layer_idx device dtype",
    mamba_simple.Mamba.forward: "self hidden_states inference_params",
    mamba_simple.Mamba.step: "self hidden_states conv_state ssm_state",
    mamba_simple.Mamba.allocate_inference_cache: "self batch_size max_seqlen dtype",
    mamba_simple.Block: "dim mixer_cls mlp_cls norm_cls fused_add_norm residual_in_fp32",
    mamba_simple.Block.forward: "self hidden_states residual inference_params",
    mixer_seq_simple.create_block: f"d_model d_intermediate {STACK} residual_in_fp32 fused_add_norm layer_idx "
    "device dtype",
    mixer_seq_simple.MixerModel: f"d_model n_layer d_intermediate vocab_size {STACK} initializer_cfg fused_add_norm "
    "residual_in_fp32 device dtype",
    mixer_seq_simple._init_weights: "module n_layer initializer_range rescale_prenorm_residual n_residuals_per_layer",
    MODEL: "config initializer_cfg device dtype",
    MODEL.from_pretrained: "pretrained_model_name device dtype",
    MODEL.save_pretrained: "self save_directory",
    MODEL.allocate_inference_cache: "self batch_size max_seqlen dtype",
    generation.GenerationMixin.generate: f"self input_ids max_length {SAMPLING} return_dict_in_generate output_scores",
    generation.decode: f"input_ids model max_length {SAMPLING} {DECODING}",
    generation.sample: f"logits {SAMPLING}",
    generation.modify_logit_for_repetition_penalty: "logits prev_output_tokens repetition_penalty",
    generation.modify_logits_for_min_p_filtering: "logits min_p",
    generation.modify_logits_for_top_k_filtering: "logits top_k",
    generation.modify_logits_for_top_p_filtering: "logits top_p",
    generation.update_graph_cache: "model cache batch_size seqlen_og max_seqlen decoding_seqlens dtype n_warmups",
    hf.load_config_hf: "model_name",
    hf.load_state_dict_hf: "model_name device dtype",
}


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__qualname__)
def test_arguments_are_the_originals_and_more_comes_after(function):
    expected = ARGUMENTS[function].split()
    assert list(inspect.signature(function).parameters)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (
            generation.InferenceParams,
            "max_seqlen max_batch_size seqlen_offset batch_size_offset key_value_memory_dict lengths_per_sample",
        ),
        (
            MambaConfig,
            "d_model d_intermediate n_layer vocab_size ssm_cfg attn_layer_idx attn_cfg rms_norm residual_in_fp32 "
            "fused_add_norm pad_vocab_size_multiple tie_embeddings",
        ),
    ],
)
def test_fields_are_the_originals_and_more_comes_after(of, expected):
    names = expected.split()
    assert [field.name for field in dataclasses.fields(of)][: len(names)] == names


def test_the_decorators_keep_autocast_out_of_an_autograd_function():
    from mamba_ssm.utils.torch import custom_bwd, custom_fwd

    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        @custom_fwd(cast_inputs=torch.float32)
        def forward(ctx, x):
            seen.append(torch.is_autocast_enabled("cuda"))
            return 2 * x

        @staticmethod
        @custom_bwd
        def backward(ctx, dout):
            seen.append(torch.is_autocast_enabled("cuda"))
            return 2 * dout

    x = torch.ones(3, requires_grad=True)
    torch.set_autocast_enabled("cuda", True)  # torch.autocast would not, without a device
    try:
        Double.apply(x).sum().backward()
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert seen == [False, False]
    assert x.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "change", [{"ssm_cfg": {"layer": "Mamba2"}}, {"attn_layer_idx": [1]}, {"d_intermediate": 64}], ids=str
)
def test_a_config_that_asks_for_what_is_left_out(change):
    for make in (
        MambaConfig(d_model=16, n_layer=2, **change).validate,
        lambda: MODEL(MambaConfig(16, n_layer=2, **change)),
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(change))}.* lacks [^\n]*layers[^\n]*: .* mamba-ssm "):
            make()
