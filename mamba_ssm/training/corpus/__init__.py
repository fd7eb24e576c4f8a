"""Text to learn from: tokenised once into files that are mapped, and read as packed batches."""

from mamba_ssm.training.corpus.corpus import Corpus, Split
from mamba_ssm.training.corpus.packing import Packed, PackedBatches
from mamba_ssm.training.corpus.write import write_corpus

__all__ = ["Corpus", "Packed", "PackedBatches", "Split", "write_corpus"]
