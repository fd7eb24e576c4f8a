"""A library on many machines: Ray reads books into shards, and answers over them. Needs the extra ``ray``."""

from mamba_ssm.cluster.reading import Finished, read_library
from mamba_ssm.cluster.shards import Shards

__all__ = ["Finished", "Shards", "read_library"]
