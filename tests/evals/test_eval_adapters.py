"""A whole run at tiny sizes: training, and the four rows in books of both sizes."""

import json
import sys

import adapters

from mamba_ssm.book.engine import DEFAULT_MODEL
from mamba_ssm.text.tokenizer import Tokenizer
from mamba_ssm.training.examples import build_examples
from mamba_ssm.training.squad import load_squad


def test_a_run_trains_and_reports_every_row(plain_model, tmp_path, monkeypatch):
    text = "The city of Zürich has a lake. It is cold there in winter, and people skate. " * 3
    asked = [
        {"id": str(n), "question": question, "answers": [{"answer_start": text.index(answer), "text": answer}]}
        for n, (question, answer) in enumerate((("What has Zürich?", "a lake"), ("What do people do?", "skate")))
    ]
    data = [{"title": title, "paragraphs": [{"context": f"{text}", "qas": asked}]} for title in "AB"]
    (tmp_path / "train-v1.1.json").write_text(json.dumps({"data": data}))
    examples = build_examples(load_squad(tmp_path / "train-v1.1.json"), Tokenizer.from_folder(DEFAULT_MODEL))
    examples.save(tmp_path / "train.safetensors")
    out = tmp_path / "adapters.json"
    places = {"--model": plain_model, "--data": tmp_path, "--examples": tmp_path / "train.safetensors"}
    places |= {"--trained": tmp_path / "trained", "--out": out}
    sizes = {"--device": "cpu", "--steps": 3, "--batch": 2, "--n": 3}
    options = [str(word) for pair in (places | sizes).items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["adapters.py", "--train", *options])
    assert adapters.main() == 0

    result = json.loads(out.read_text())
    assert set(result["training_seconds"]) == {"esi", "whole"}
    assert list(result["books"]) == ["1 article", "40 articles"]
    for book in result["books"].values():
        assert list(book) == ["plain", "training-free", "ESI tuned, backbone frozen", "tuned with backbone"]
        assert book.pop("plain")["recall"] == {"@1": None, "@8": None}  # it searches nothing
        for row in book.values():
            assert row["questions"] == 3
            assert row["recall"]["@8"]["value"] == 1.0  # each book is a passage or two
            assert row["exact_match"]["interval_95"][0] <= row["exact_match"]["value"] <= row["f1"]["value"]
