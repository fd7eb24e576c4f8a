"""Nothing that we measure on was trained on. Committed fingerprints suffice; where data/ is present, so is the text."""

from pathlib import Path

import pytest

import mamba_ssm
from mamba_ssm.errors import MambaESIError
from mamba_ssm.training.heldout import fingerprint, fingerprints, read_fingerprints, write_training_manifest
from mamba_ssm.training.squad import Article, Paragraph, development_titles, load_squad, training_articles

HELD_OUT = read_fingerprints(Path(__file__).parent / "heldout_fingerprints.json.gz")
MANIFEST = Path(mamba_ssm.__file__).parent / "weights" / "default" / "training_data.json.gz"
DATA = Path(__file__).parents[2] / "data"
needs_data = pytest.mark.skipif(not (DATA / "squad").is_dir(), reason="no data/: run scripts/fetch_data.py")

# What a Debian system says at login, which the Debian Reference and the Administrator's Handbook both show.
NOTICE = (
    "The programs included with the Debian GNU/Linux system are free software; the exact distribution terms for each "
    "program are described in the individual files in /usr/share/doc/*/copyright."
)
LEAK = "The Panthers defeated the Cardinals in the NFC Championship Game"


def article(title: str, *paragraphs: str) -> Article:
    return Article(title, [Paragraph(text, []) for text in paragraphs])


def test_the_shipped_model_was_trained_on_nothing_held_out() -> None:
    trained = read_fingerprints(MANIFEST)
    # 402 articles of SQuAD train, and books; 88 articles held out, four books, and the papers of QASPER.
    assert len(trained.titles) >= 402
    assert len(trained.paragraphs) >= 16_000
    assert len(HELD_OUT.titles) == 48 + 40 + 4 + 260
    assert len(HELD_OUT.paragraphs) >= 2_067 + 1_933
    assert trained.shared_with(HELD_OUT) <= {fingerprint(NOTICE)}


def test_known_held_out_titles_are_guarded() -> None:
    titles = ["Super Bowl 50", "super_bowl_50", "Advanced Bash-Scripting Guide", "The Rust Programming Language"]
    for title in titles:
        assert fingerprints([article(title)]).shared_with(HELD_OUT), title


@pytest.mark.parametrize(
    "leak",
    [
        article("Super_Bowl_50", "a paragraph of its own"),
        article("Another title", LEAK),
        article("Another title", f"  {LEAK.upper()}.\n"),
        article("Another title", LEAK.replace(" ", "\u00a0")),
    ],
)
def test_a_planted_leak_is_found(tmp_path: Path, leak: Article) -> None:
    held_out = fingerprints([article("Super Bowl 50", LEAK)])
    clean = article("Photosynthesis", "Plants turn light into sugar.")
    path = tmp_path / "training_data.json.gz"
    write_training_manifest(path, [clean])
    assert not read_fingerprints(path).shared_with(held_out)
    write_training_manifest(path, [clean, leak])
    assert len(read_fingerprints(path).shared_with(held_out)) == 1


def test_a_leak_inside_a_book_is_found(tmp_path: Path) -> None:
    paragraph = " ".join(f"word{i}" for i in range(40))
    held_out = fingerprints([article("Title", paragraph)])
    found = write_training_manifest(tmp_path / "m.json.gz", [], {"A book": f"Chapter 1\n\n{paragraph}\n\nThe end"})
    assert len(found.shared_with(held_out)) == 1


def test_a_manifest_is_the_same_bytes_for_the_same_data(tmp_path: Path) -> None:
    articles = [article("One", "first", "second"), article("Two", "third")]
    write_training_manifest(tmp_path / "a", articles)
    write_training_manifest(tmp_path / "b", articles[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"not gzip"])
def test_a_missing_or_damaged_manifest_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    with pytest.raises(MambaESIError, match="fingerprints"):
        read_fingerprints(tmp_path / "m")


@needs_data
def test_the_committed_fingerprints_are_those_of_the_data() -> None:
    train, dev = (load_squad(DATA / "squad" / f"{name}-v1.1.json") for name in ("train", "dev"))
    development = development_titles(train)
    held_out = fingerprints([*dev, *(a for a in train if a.title in development)])
    assert held_out.titles <= HELD_OUT.titles
    assert held_out.paragraphs <= HELD_OUT.paragraphs
    used = fingerprints(training_articles(train))
    trained = read_fingerprints(MANIFEST)
    assert used.titles <= trained.titles
    assert used.paragraphs <= trained.paragraphs
    assert not used.shared_with(held_out)


@needs_data
def test_no_fetched_book_holds_a_held_out_paragraph() -> None:
    books = {path.stem: path.read_text(encoding="utf-8") for path in (DATA / "text").glob("*.txt")}
    assert not fingerprints([], books).shared_with(HELD_OUT)
