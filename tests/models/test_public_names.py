"""The names that programs written for the original package import, and what importing costs."""

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("mamba_ssm", "selective_scan_fn mamba_inner_fn selective_state_update Mamba MambaLMHeadModel __version__"),
        ("mamba_ssm.modules.mamba_simple", "Mamba Block"),
        ("mamba_ssm.modules.block", "Block"),
        ("mamba_ssm.models.mixer_seq_simple", "MambaLMHeadModel MixerModel create_block _init_weights"),
        ("mamba_ssm.models.config_mamba", "MambaConfig"),
        ("mamba_ssm.utils.generation", "InferenceParams GenerationMixin update_graph_cache decode sample"),
        ("mamba_ssm.utils.hf", "load_config_hf load_state_dict_hf"),
    ],
)
def test_names(module, names):
    home = importlib.import_module(module)
    for name in names.split():
        assert getattr(home, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    import mamba_ssm

    with pytest.raises(AttributeError, match="Mamba9"):
        _ = mamba_ssm.Mamba9
    assert "Mamba" in dir(mamba_ssm)


def test_importing_needs_torch_alone():
    code = (
        "import sys, mamba_ssm; assert 'torch' not in sys.modules; from mamba_ssm import Mamba, MambaLMHeadModel;"
        "heavy = {'triton', 'transformers', 'safetensors', 'huggingface_hub', 'tokenizers', 'rich'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
