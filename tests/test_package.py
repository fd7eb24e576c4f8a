"""What the package promises as a whole: its names, what importing costs, its files, and what the README shows."""

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.version import Version

import mamba_ssm
from mamba_ssm import Mamba, MambaLMHeadModel
from mamba_ssm.models.config_mamba import MambaConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_version_stays_below_mamba_2() -> None:
    """transformers takes 2.0.4 and later for a package with Mamba-2."""
    assert Version(mamba_ssm.__version__) < Version("2.0.4")


def test_importing_loads_no_extras() -> None:
    heavy = [
        "triton",
        "cuda",
        "typer",
        "rich",
        "selectolax",
        "pypdfium2",
        "charset_normalizer",
        "tokenizers",
        "matplotlib",
        "prompt_toolkit",
        "transformers",
    ]
    code = f"import sys, mamba_ssm; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_a_model_does_not_wait_for_pytorch_s_compiler() -> None:
    load = "from mamba_ssm.book import Engine; Engine.load(device='cpu')"
    code = f"import sys; {load}; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there() -> None:
    for name in mamba_ssm.__all__:
        assert getattr(mamba_ssm, name) is not None
    assert {"Mamba", "MambaLMHeadModel", "read", "load_book", "selective_scan_fn"} <= set(mamba_ssm.__all__)


def test_a_layer_as_promised() -> None:
    x = torch.randn(2, 64, 16)
    y = Mamba(d_model=16, d_state=16, d_conv=4, expand=2)(x)
    assert y.shape == x.shape


@pytest.mark.gpu
def test_a_layer_on_a_gpu_as_promised() -> None:
    y = Mamba(d_model=16, d_state=16, d_conv=4, expand=2).to("cuda")(torch.randn(2, 64, 16).to("cuda"))
    assert y.shape == (2, 64, 16)
    assert y.isfinite().all()


@pytest.mark.parametrize("esi", [None, {"d_read": 32, "n_read": 1}])
def test_a_model_with_a_question_as_promised(tmp_path: Path, esi: dict[str, int] | None) -> None:
    config = MambaConfig(d_model=32, n_layer=3, vocab_size=277, esi=esi)
    MambaLMHeadModel(config).save_pretrained(tmp_path)
    input_ids_1x2048, question_ids_1x20 = torch.randint(1, 277, (1, 2048)), torch.randint(1, 277, (1, 20))
    model = MambaLMHeadModel.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(input_ids_1x2048, question_ids_1x20).logits
    assert logits.shape == (1, 2048, 280)
    assert logits.isfinite().all()


def test_the_readme_asks_a_book_that_is_there() -> None:
    (line,) = (line for line in blocks("sh")[0].splitlines() if "mamba-esi ask" in line)
    words = shlex.split(line[line.index("mamba-esi ask") :])
    assert (ROOT / words[2]).is_file()
    assert any(words[3] in known for known in (ROOT / "examples/questions.jsonl").read_text("utf-8").splitlines())


@pytest.mark.parametrize("code", blocks("python"))
def test_the_code_of_the_readme_compiles(code: str) -> None:
    compile(code, "README.md", "exec")
    for module, names in re.findall(r"^from (mamba_ssm\S*) import ([\w, ]+)", code, re.M):
        done = {}
        exec(f"from {module} import {names}", done)
        assert set(names.replace(" ", "").split(",")) <= set(done)


def test_every_file_that_the_documents_link_is_there() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_wheel_has_the_model_and_no_tests(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(path).namelist())
    folder = Path("mamba_ssm/weights/default")
    shipped = {(folder / file.name).as_posix() for file in (ROOT / folder).iterdir()}
    assert {(folder / name).as_posix() for name in ("config.json", "tokenizer.json")} <= shipped <= names
    assert "mamba_ssm/ops/triton/layernorm.py" in names
    page = Path("mamba_ssm/server/page")
    assert {(page / file.name).as_posix() for file in (ROOT / page).iterdir()} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mamba_ssm", "causal_conv1d"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_shipped_model_is_small() -> None:
    sizes = [f.stat().st_size for f in (ROOT / "mamba_ssm/weights/default").iterdir() if f.suffix != ".gz"]
    assert sum(sizes) <= 24e6
    assert max(sizes) <= 15e6
