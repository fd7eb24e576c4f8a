"""Packed batches against a loop over the documents, and what a real model makes of them."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_ssm.errors import CorpusError
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.training.corpus import Corpus, PackedBatches
from mamba_ssm.training.corpus.corpus import sha256_of
from mamba_ssm.training.corpus.manifest import FORMAT, SPLITS, Manifest, shard_name, split_name

BIG = 1 << 16


def corpus_of(folder, lengths, shard_tokens=BIG, ids=None):
    """A corpus with documents of these lengths to train on; token number i is i where no ids are given."""
    folder.mkdir(parents=True)
    ends = np.cumsum(lengths)
    tokens = np.arange(ends[-1]) if ids is None else ids
    for number, start in enumerate(range(0, len(tokens), shard_tokens)):
        tokens[start : start + shard_tokens].astype("<u2").tofile(folder / shard_name(number))
    np.stack([ends - lengths, ends], axis=1).astype("<i8").tofile(folder / split_name("train"))
    for name in (split_name("held_out"), "tokenizer.json"):
        (folder / name).touch()
    files = {path.name: sha256_of(path) for path in folder.iterdir()}
    counts = dict(zip(SPLITS, (len(lengths), 0), strict=True))
    Manifest(FORMAT, "", "uint16", BIG, len(tokens), shard_tokens, counts, files).write(folder)
    return Corpus.open(folder)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=100)
@given(sizes, st.integers(1, 33), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99), st.integers(1, 60))
def test_any_documents_are_packed_whole_and_apart(lengths, length, rows, ranks, seed, shard_tokens):
    ranks = min(ranks, rows)
    ends = np.cumsum(lengths)
    starts = set((ends - lengths).tolist())
    last = set((ends - 1).tolist())
    total = int(ends[-1])
    with tempfile.TemporaryDirectory() as folder:
        batches = PackedBatches(
            corpus_of(Path(folder, "c"), np.array(lengths), shard_tokens).split("train"), length, rows, seed
        )
        # Rows enough for two epochs, and to end with one of them or in the next.
        count = -(-2 * total // length)
        steps = [batches.at(step) for step in range(-(-count // rows))]
        for step, whole in enumerate(steps):
            parts = [batches.at(step, rank, ranks) for rank in range(ranks)]
            for joined, wanted in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=True):
                assert torch.equal(joined, wanted)
            again = PackedBatches(batches.split, length, rows, seed).at(step)
            assert all(map(torch.equal, again, whole))
    ids, targets, seq_idx = (torch.cat(field).tolist() for field in zip(*steps, strict=True))
    for row, following, sequence in zip(ids, targets, seq_idx, strict=True):
        assert len(row) == length
        for i, token in enumerate(row):
            # Within a document tokens count on, and tokens of a document alone have one number.
            assert following[i] == (-100 if token in last else token + 1)
            if i:
                assert (sequence[i] != sequence[i - 1]) == (token in starts)
                assert token in starts or token == row[i - 1] + 1
                assert token not in starts or row[i - 1] in last
    # The rows that begin in the first two epochs are all rows that do: none comes twice or is missing. An epoch's
    # tokens are those of its rows but for what a row at its end takes from the next.
    seen = np.bincount(np.array(ids[:count]).ravel(), minlength=total)
    assert seen.sum() == count * length
    assert seen.min() >= 2
    assert (seen - 2).sum() == count * length - 2 * total
    assert seen.max() <= 2 + -(-length // total)


@pytest.mark.parametrize(("lengths", "length"), [([100] * 64, 32), ([7, 13, 200, 1, 35] * 10, 16)])
def test_each_token_is_seen_exactly_once_an_epoch_in_another_order(tmp_path, lengths, length):
    total = sum(lengths)
    assert total % length == 0
    batches = PackedBatches(corpus_of(tmp_path / "c", lengths).split("train"), length, 1, seed=3)
    steps = total // length
    epochs = [
        torch.cat([batches.at(epoch * steps + step).input_ids for step in range(steps)]).flatten() for epoch in range(3)
    ]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(total))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    other = PackedBatches(batches.split, length, 1, seed=4).at(0).input_ids
    assert not torch.equal(other, batches.at(0).input_ids)


def test_a_long_document_is_not_a_step_of_its_own(tmp_path):
    batches = PackedBatches(corpus_of(tmp_path / "c", [16_000, 16_000]).split("train"), 100, 16, seed=0)
    first = batches.at(0).input_ids[:, 0]
    assert 0 < (first < 16_000).sum() < 16
    assert first.sort().values.diff().min() >= 100


def test_the_order_is_the_same_for_ever(tmp_path):
    """Runs that were begun with another version go on with the same data."""
    batches = PackedBatches(corpus_of(tmp_path / "c", [3, 4, 5, 6]).split("train"), 6, 2, seed=1)
    # Worked out by hand from raw bits of PCG64 (`_permutation`), which NumPy promises not to change.
    bits = np.random.PCG64(np.random.SeedSequence((1, 0, 0))).random_raw(4).tolist()
    order = sorted(range(4), key=bits.__getitem__)
    ends = np.cumsum([3, 4, 5, 6])
    stream = np.concatenate([np.arange(18)[ends[d] - [3, 4, 5, 6][d] : ends[d]] for d in order])
    bits = np.random.PCG64(np.random.SeedSequence((1, 0, 1))).random_raw(3).tolist()
    rows = sorted(range(3), key=bits.__getitem__)
    assert batches.at(0).input_ids.tolist() == [stream[6 * row : 6 * row + 6].tolist() for row in rows[:2]]


@pytest.mark.parametrize("seed", range(2))
def test_documents_do_not_leak_into_one_another(tmp_path, seed):
    """A packed row gives each document the logits that it has alone; changing one changes no other's."""
    torch.manual_seed(seed)
    model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=2, vocab_size=64, ssm_cfg={"d_state": 4})).eval()
    lengths, length = [5, 1, 17, 9, 2, 40, 3], 23
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, 64, sum(lengths))
    changed = ids.copy()
    changed[6:23] = (ids[6:23] + 1) % 64  # the third document
    tables = []
    for name, tokens in (("one", ids), ("two", changed)):
        batches = PackedBatches(corpus_of(tmp_path / name, lengths, ids=tokens).split("train"), length, 4, seed)
        rows = batches.at(0)
        with torch.no_grad():
            logits = model(rows.input_ids, seq_idx=rows.seq_idx).logits
            for row, sequence, got in zip(rows.input_ids, rows.seq_idx, logits, strict=True):
                for number in sequence.unique():
                    document = sequence == number
                    torch.testing.assert_close(got[document], model(row[document][None]).logits[0])
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
        tables.append((logits.flatten(0, 1), losses, rows.input_ids.flatten()))
    places = PackedBatches(corpus_of(tmp_path / "places", lengths).split("train"), length, 4, seed).at(0).input_ids
    touched = ((places >= 6) & (places < 23)).flatten()
    assert torch.equal((tables[0][2] != tables[1][2]), touched)
    assert 0 < touched.sum() < touched.numel()
    assert torch.equal(tables[0][0][~touched], tables[1][0][~touched])
    assert torch.equal(tables[0][1][~touched], tables[1][1][~touched])


def test_impossible_sizes_are_errors(tmp_path):
    corpus = corpus_of(tmp_path / "c", [10])
    with pytest.raises(CorpusError, match="held_out"):
        PackedBatches(corpus.split("held_out"), 8, 2, 0)
    for length, rows, seed in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match="must be"):
            PackedBatches(corpus.split("train"), length, rows, seed)
    with pytest.raises(ValueError, match="process 2 of 3"):
        PackedBatches(corpus.split("train"), 8, 2, 0).at(0, 2, 3)
