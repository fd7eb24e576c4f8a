"""A book on disk to text with pages and sections."""

from mamba_ssm.text.books import read_pieces
from mamba_ssm.text.piece import Piece

__all__ = ["Piece", "read_pieces"]
