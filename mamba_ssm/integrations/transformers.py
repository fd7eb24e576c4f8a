"""transformers' own Mamba and FalconMamba on this package's ops.

Where transformers finds packages called mamba_ssm and causal_conv1d by itself (checked with 5.23), it runs our scan,
step and convolution with no call. `use_ops()` is for the rest: versions that look on CUDA devices only, and by the name
of the distribution, so never for us (4.57); and training with padding on the left or of FalconMamba, where what the
fused `mamba_inner_fn` is asked for is not what transformers' own path in PyTorch computes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import transformers
from torch import Tensor

from mamba_ssm.errors import BackendError
from mamba_ssm.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
from mamba_ssm.ops.selective_state_update import selective_state_update

__all__ = ["use_ops"]

_MODELS = {"mamba": "MambaMixer", "falcon_mamba": "FalconMambaMixer"}


def use_ops() -> None:
    """Let every Mamba and FalconMamba model of transformers, built before or after, run this package's ops.

    On any device, for inference, training, padded batches and cached decoding; the results are those of transformers'
    own path in PyTorch. It sets names in transformers' modules for as long as the process runs.
    Raises BackendError where transformers is of a version whose way to its ops is not known.
    """
    for name, mixer in _MODELS.items():
        modeling: Any = import_module(f"transformers.models.{name}.modeling_{name}")
        if hasattr(modeling, "mamba_selective_scan"):
            # Our functions are there already. Without a fused one, training takes the same path of parts as inference.
            modeling.mamba_inner_fn = _no_fused_function
        elif hasattr(modeling, "_lazy_load_causal_conv1d"):
            _replace(modeling, getattr(modeling, mixer))
        else:
            raise BackendError(
                f"transformers {transformers.__version__} has another way to its Mamba ops than is known here: "
                "install one that docs/transformers.md names, such as 5.23"
            )


def _no_fused_function(*args: Any, **kwargs: Any) -> None:
    """What transformers' own stand-in for `mamba_inner_fn` returns: it then takes the parts."""


def _replace(modeling: Any, mixer: Any) -> None:
    """Fill in what a transformers without CUDA has left at None, and take the path that calls it on any device."""
    modeling.selective_scan_fn = selective_scan_fn
    modeling.selective_state_update = selective_state_update
    modeling.mamba_inner_fn = mamba_inner_fn
    modeling._causal_conv1d_cache = (causal_conv1d_update, causal_conv1d_fn)
    mixer.forward = _forward


def _forward(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    cache_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """A mixer of transformers 4.57, hidden_states (B, L, M) in and out, by its path for kernels.

    In training that path goes through the fused function, which it does not tell of attention_mask; the parts know it.
    Nothing below a mixer behaves differently in training.
    """
    training, mixer.training = mixer.training, False
    try:
        return mixer.cuda_kernels_forward(hidden_states, cache_params, cache_position, attention_mask)
    finally:
        mixer.training = training
