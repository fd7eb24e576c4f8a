"""The kernels without a GPU, in Triton's interpreter and compiled, in processes of their own: see conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*command: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_kernels_in_the_interpreter():
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE), TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Triton's Linux wheel has a compiler for NVIDIA GPUs")
def test_kernels_compile_for_hopper(tmp_path):
    run(str(HERE / "compile_for_hopper.py"), TRITON_CACHE_DIR=str(tmp_path))
