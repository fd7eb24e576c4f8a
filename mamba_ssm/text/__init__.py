"""A book on disk to text with pages and sections."""

from mamba_ssm.text.books import book_files, read_pieces
from mamba_ssm.text.piece import Piece

__all__ = ["Piece", "book_files", "read_pieces"]
