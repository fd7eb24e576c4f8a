"""Names that are not there, and what importing costs. Those that are: tests/test_compatibility.py."""

import subprocess
import sys

import pytest


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
