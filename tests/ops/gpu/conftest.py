"""Where there is no GPU, Triton runs the kernels in Python: slow, but the same source."""

import os
import sys

import pytest
import torch

# Triton reads this when it is first imported, for its own functions too.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _let_interpreter_take_range() -> None:
    """NumPy 2.4 no longer turns an array of one element into an int, which Triton 3.6's interpreter asks for in range()."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    _let_interpreter_take_range()
