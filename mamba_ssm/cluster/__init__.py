"""A library on many machines: Ray reads books into shards, and answers over them. Needs the extra ``ray``."""
