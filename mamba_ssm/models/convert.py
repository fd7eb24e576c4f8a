"""Checkpoints from the original's layout to transformers' and back: other names, the same numbers, bit for bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor

from mamba_ssm.errors import CheckpointError
from mamba_ssm.models import checkpoint
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.utils.hf import find_file, is_transformers, load_raw_config

Layout = Literal["original", "transformers"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], to: Layout | None = None) -> Layout:
    """Write the checkpoint ``source``, a folder or a name on the hub, to the new or empty folder ``target``.

    ``to`` is the layout to write, by default the one that the source is not in; it is returned. Tensors keep their
    types and every bit; a head that is tied to the embedding is not stored twice. Tokenizer files are copied.
    Raises CheckpointError if the source is damaged, cannot be said in that layout, or the target is in the way.
    """
    target = Path(target).expanduser().resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not an empty folder: give a new one")
    found: Layout = "transformers" if is_transformers(load_raw_config(source)) else "original"
    if to is None:
        to = "original" if found == "transformers" else "transformers"
    if to == found:
        raise CheckpointError(f"{source} is in the layout {to} already: there is nothing to convert")
    config = checkpoint.load_config(source)
    # Said before the weights are read: they are large.
    written = config.to_dict() if to == "original" else _transformers_config(config, source)
    tensors = checkpoint.load_weights(source, MambaLMHeadModel(config, device="meta"))
    if to == "transformers":
        written["torch_dtype"] = str(tensors["backbone.embedding.weight"].dtype).removeprefix("torch.")
        tensors = {key.replace("backbone.embedding.", "backbone.embeddings."): t for key, t in tensors.items()}
    try:
        _write(tensors, written, _tokenizer_files(source), target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {target} ({error}): mend that, or give another folder") from error
    return to


def _transformers_config(config: MambaConfig, source: str | os.PathLike[str]) -> dict[str, Any]:
    """The original's fields by transformers' names. What is left out is how a new model would begin, or be run."""
    if config.esi is not None:
        raise CheckpointError(
            f"{source} has embedding search and injection, which transformers' layout cannot hold: keep this layout"
        )
    if not config.rms_norm:
        raise CheckpointError(f"{source} uses LayerNorm, and transformers' Mamba RMSNorm only: keep this layout")
    ssm = config.ssm_cfg
    expand = ssm.get("expand", 2)
    if expand != int(expand):
        raise CheckpointError(f"{source} has expand {expand}, and transformers whole numbers only: keep this layout")
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "vocab_size": config.padded_vocab_size,  # transformers counts the padding in
        "state_size": ssm.get("d_state", 16),
        "conv_kernel": ssm.get("d_conv", 4),
        "expand": int(expand),
        "time_step_rank": ssm.get("dt_rank", "auto"),
        "use_conv_bias": ssm.get("conv_bias", True),
        "use_bias": ssm.get("bias", False),
        "hidden_act": "silu",
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _tokenizer_files(source: str | os.PathLike[str]) -> list[Path]:
    """Those that the source has: it may have none, as the published checkpoints."""
    on_hub = not Path(source).expanduser().is_dir()
    files: list[Path] = []
    for name in TOKENIZER_FILES:
        try:
            files.append(find_file(source, [name]))
        except CheckpointError:
            if on_hub and not files:
                break  # without the first it has no others; a hub out of reach costs half a minute for each
    return files


def _write(tensors: dict[str, Tensor], config: dict[str, Any], more: list[Path], target: Path) -> None:
    """All of it or nothing: the folder gets its name when it is complete."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        checkpoint.write(tensors, config, partial)
        for file in more:
            shutil.copyfile(file, partial / file.name)
        if target.exists():
            target.rmdir()  # empty; Windows renames onto no folder
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
