"""The sizes of embedding search and injection."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mamba_ssm.errors import CheckpointError


@dataclass(frozen=True)
class ESIConfig:
    """Sizes that a checkpoint fixes. Lengths are in tokens.

    A text is encoded in segments of ``segment`` tokens, each from a zero state; a segment's first ``warmup`` tokens are
    the last of the segment before, and give no keys. Windows of ``window`` tokens start every ``window // 2`` tokens.
    The reader sees ``margin`` more tokens on both sides of a window, for a sentence may stand across its ends. An
    answer comes from the ``top_k`` best windows; the reader ranks ``n_ranked`` as evidence.
    """

    n_enc: int = 2
    d_search: int = 128
    segment: int = 256
    warmup: int = 64
    window: int = 64
    margin: int = 16
    top_k: int = 8
    n_ranked: int = 32
    d_read: int = 256
    n_read: int = 3
    d_state: int = 8
    n_heads: int = 4
    question: int = 32

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or not 0 < value <= 65536:
                raise CheckpointError(
                    f"esi.{name} is {value!r}; it must be a whole number from 1 to 65536: mend the config"
                )
        if self.window % 2 or self.block % self.stride or self.stride > self.warmup or self.window > self.block:
            raise CheckpointError(
                "esi.window must be even, esi.segment - esi.warmup a multiple of half a window and at least a window, "
                "and esi.warmup at least half a window: mend the config"
            )
        if self.d_read % self.n_heads:
            raise CheckpointError("esi.d_read must be a multiple of esi.n_heads: mend the config")

    @property
    def block(self) -> int:
        """New tokens in a segment."""
        return self.segment - self.warmup

    @property
    def stride(self) -> int:
        """Tokens from the start of one window to the start of the next."""
        return self.window // 2

    @property
    def read_window(self) -> int:
        """Tokens that the reader sees of a window, with its margins."""
        return self.window + 2 * self.margin

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ESIConfig:
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise CheckpointError(
                f"unknown ESI settings {', '.join(unknown)}: was the config written by a newer mamba-esi?"
            )
        return cls(**values)
