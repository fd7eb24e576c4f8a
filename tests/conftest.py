"""Tiny random models with the shipped tokenizer, and a small book that they can read."""

import shutil

import pytest
from hypothesis import settings

settings.register_profile("as slow as the machine is", deadline=None)
settings.load_profile("as slow as the machine is")

CONFIG = {"d_model": 32, "n_layer": 3, "vocab_size": 32768, "ssm_cfg": {"d_state": 4}}
ESI = {"n_enc": 1, "d_search": 32, "d_read": 32, "n_read": 1}


def save_tiny_model(folder, esi, seed=0):
    import torch

    from mamba_ssm.book.engine import DEFAULT_MODEL
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    torch.manual_seed(seed)
    MambaLMHeadModel(MambaConfig(**CONFIG, esi=esi)).save_pretrained(folder)
    shutil.copy(DEFAULT_MODEL / "tokenizer.json", folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a model with ESI weights."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), ESI)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """The same sizes, other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("other"), ESI, seed=1)


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory):
    """The folder of a model without ESI weights."""
    return save_tiny_model(tmp_path_factory.mktemp("plain"), None)


@pytest.fixture(scope="session")
def book_text():
    """Chapters of numbered sentences, with letters of several bytes: some 8,000 tokens."""
    chapters = []
    for chapter in range(1, 9):
        lines = [
            f"In chapter {chapter}, the curious naïve gardener number {n} planted {n * chapter} 🌱 trees near Zürich."
            for n in range(40)
        ]
        chapters.append(f"# Chapter {chapter}\n\n" + "\n".join(lines) + "\n\n")
    return "".join(chapters)


@pytest.fixture(scope="session")
def book_path(tmp_path_factory, book_text):
    path = tmp_path_factory.mktemp("books") / "garden.md"
    path.write_text(book_text, encoding="utf-8")
    return path
