"""Embedding search and injection (ESI): find the passages a question needs and put them into the model's state."""
