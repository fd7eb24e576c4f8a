"""The names of the package causal-conv1d, on the convolution of mamba_ssm: no compiler, on a CPU as well as on a GPU.

``__version__`` says whose names and signatures these are: those of causal-conv1d 1.5.
"""

from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_update

__version__ = "1.5.0"

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]
