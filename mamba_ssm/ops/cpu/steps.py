"""One token of a convolution and of the scan on a CPU: what the fused step and the ops by themselves share."""

from typing import Any

import numpy as np

from mamba_ssm.ops.cpu.arithmetic import LOG2E, exp2, fast

ZERO = np.float32(0)


@fast
def slide(past: Any, weight: Any, x: Any, channels: Any, kept: Any, width: Any) -> None:
    """Put x behind the last inputs of each channel, in place of the first, and a weighted sum of the last ones into x.

    past: (channels, kept), kept at least width - 1. weight: (channels, width).
    """
    for c in range(channels):
        own, first = c * kept, c * kept + kept - (width - 1)
        sum = x[c] * weight[c * width + width - 1]
        for k in range(width - 1):
            sum += past[first + k] * weight[c * width + k]
        for k in range(kept - 1):
            past[own + k] = past[own + k + 1]
        if kept > 0:
            past[own + kept - 1] = x[c]
        x[c] = sum


@fast
def move_on(h: Any, A: Any, B: Any, C: Any, dt: Any, v: Any, count: Any, logarithms: Any) -> Any:
    """A channel's states by one step, in place, and its output; with logarithms, A is that of the negated rates."""
    y = ZERO
    for n in range(count):
        rate = -LOG2E * exp2(LOG2E * A[n]) if logarithms else LOG2E * A[n]
        new = exp2(dt * rate) * h[n] + v * B[n]
        h[n] = new
        y += new * C[n]
    return y
