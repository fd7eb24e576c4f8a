"""Mamba-ESI: a drop-in ``mamba_ssm`` and a Mamba language model that reads whole books."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_ssm.book import Answer, Book, Passage, load_book, read
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.modules.mamba_simple import Mamba
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
    from mamba_ssm.ops.selective_state_update import selective_state_update

__version__ = "2.0.1"

# Loaded when first used (PEP 562), so that `import mamba_ssm` costs nothing.
_HOMES = {
    "Answer": "mamba_ssm.book",
    "Book": "mamba_ssm.book",
    "Mamba": "mamba_ssm.modules.mamba_simple",
    "MambaLMHeadModel": "mamba_ssm.models.mixer_seq_simple",
    "Passage": "mamba_ssm.book",
    "load_book": "mamba_ssm.book",
    "mamba_inner_fn": "mamba_ssm.ops.selective_scan_interface",
    "read": "mamba_ssm.book",
    "selective_scan_fn": "mamba_ssm.ops.selective_scan_interface",
    "selective_state_update": "mamba_ssm.ops.selective_state_update",
}

# `import mamba_ssm` of the original loads its modules, so programs reach them as attributes, from these on.
_PACKAGES = ("models", "modules", "ops", "utils")
_LOADED = ("models.mixer_seq_simple", "ops.triton.layer_norm", "ops.triton.selective_state_update")

__all__ = [
    "Answer",
    "Book",
    "Mamba",
    "MambaLMHeadModel",
    "Passage",
    "load_book",
    "mamba_inner_fn",
    "read",
    "selective_scan_fn",
    "selective_state_update",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        for module in _LOADED:
            import_module(f"{__name__}.{module}")
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
