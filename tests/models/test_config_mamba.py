"""config.json of the published checkpoints, and of files that nobody should load."""

import pytest
import torch

from mamba_ssm.errors import CheckpointError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel, create_block

PUBLISHED = {
    "mamba-130m": (768, 24),
    "mamba-370m": (1024, 48),
    "mamba-790m": (1536, 48),
    "mamba-1.4b": (2048, 48),
    "mamba-2.8b": (2560, 64),
    "mamba-2.8b-slimpj": (2560, 64),
}


def published_config(d_model: int, n_layer: int) -> dict:
    """What the published config.json files hold."""
    return {
        "d_model": d_model,
        "n_layer": n_layer,
        "vocab_size": 50277,
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }


def parameters_on_paper(d: int, layers: int, vocabulary: int = 50280) -> int:
    inner, rank, state = 2 * d, -(-d // 16), 16
    projections = d * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * d
    vectors = inner * 4 + inner + inner + inner * state + inner + d  # convolution and bias, dt bias, A, D, norm
    return vocabulary * d + layers * (projections + vectors) + d


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_geometries_have_their_exact_number_of_parameters(name):
    model = MambaLMHeadModel(MambaConfig.from_dict(published_config(*PUBLISHED[name])), device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters_on_paper(*PUBLISHED[name])
    assert model.backbone.embedding.num_embeddings == 50280
    assert model.lm_head.weight is model.backbone.embedding.weight


def test_the_smallest_published_model_is_129_135_360_parameters():
    assert parameters_on_paper(*PUBLISHED["mamba-130m"]) == 129_135_360  # as its card on the hub counts


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_geometries_are_known_by_name(name):
    expected = MambaConfig.from_dict(published_config(*PUBLISHED[name]))
    assert MambaConfig.published(name) == MambaConfig.published(f"state-spaces/{name}") == expected


def test_an_unknown_geometry_names_the_nearest():
    with pytest.raises(CheckpointError, match=r"mean state-spaces/mamba-130m\?"):
        MambaConfig.published("mamba-130")


def test_what_is_written_is_the_originals_layout():
    config = MambaConfig(d_model=8, n_layer=1, vocab_size=9)
    assert "esi" not in config.to_dict()
    assert MambaConfig.from_dict(config.to_dict()) == config
    assert config.padded_vocab_size == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_model": 0}, "d_model is 0"),
        ({"d_model": 2**40}, "d_model"),
        ({"d_model": "768"}, "d_model"),
        ({"d_model": True}, "d_model"),
        ({"n_layer": 10**9}, "n_layer"),
        ({"n_layer": 2.5}, "n_layer"),
        ({"vocab_size": -5}, "vocab_size"),
        ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple"),
        ({"rms_norm": "yes"}, "rms_norm"),
        ({"ssm_cfg": []}, "ssm_cfg"),
        ({"ssm_cfg": {"d_state": 10**9}}, "d_state"),
        ({"ssm_cfg": {"expand": float("nan")}}, "expand"),
        ({"ssm_cfg": {"dt_rank": "many"}}, "dt_rank"),
        ({"ssm_cfg": {"headdim": 64}}, "headdim"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "Mamba2"),
        ({"attn_layer_idx": [3]}, "attention"),
        ({"d_intermediate": 3072}, "MLP"),
        ({"rope_theta": 1e4}, "rope_theta"),
    ],
)
def test_a_bad_value_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        MambaConfig.from_dict(published_config(8, 1) | change)


def test_a_missing_size_is_named():
    with pytest.raises(ValueError, match="n_layer"):
        MambaConfig.from_dict({"d_model": 8, "vocab_size": 8})


def test_metadata_of_other_tools_is_no_reason_to_refuse():
    extra = {"architectures": ["MambaLMHeadModel"], "torch_dtype": "float32", "_name_or_path": "x"}
    assert MambaConfig.from_dict(published_config(8, 1) | extra) == MambaConfig.from_dict(published_config(8, 1))


def test_create_block_refuses_what_the_package_lacks():
    with pytest.raises(ValueError, match="Mamba2"):
        create_block(8, ssm_cfg={"layer": "Mamba2"})
    assert create_block(8, layer_idx=3, ssm_cfg={"layer": "Mamba1", "d_state": 2}).mixer.d_state == 2


def test_a_model_on_the_meta_device_costs_nothing():
    model = MambaLMHeadModel(MambaConfig(), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta for p in model.parameters())
