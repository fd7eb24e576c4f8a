"""What autograd functions are decorated with so that AMP on CUDA leaves them alone, at the original's path."""

from functools import partial

import torch

custom_fwd = partial(torch.amp.custom_fwd, device_type="cuda")
custom_bwd = partial(torch.amp.custom_bwd, device_type="cuda")
