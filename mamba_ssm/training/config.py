"""Settings of a run of ``mamba-esi train``: from the command line, a YAML file, or both.

``LoopConfig`` is what the loop needs whatever it trains; ``LMConfig``, ``EsiConfig`` and ``QAConfig`` add what is a
recipe's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mamba_ssm.errors import TrainingError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

BACKBONE_RATE = 0.1


@dataclass(kw_only=True)
class LoopConfig:
    """What the loop needs to know."""

    out: str
    """The folder of the run: checkpoints, metrics.jsonl, and at the end the model."""
    steps: int
    """Steps of the optimiser."""
    lr: float = 6e-4
    """The learning rate at its highest."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up; cosine: down half a cosine; wsd: level, and down in a line at the end."""
    warmup: int = 100
    """Steps until the learning rate is at its highest."""
    decay_steps: int = 0
    """The last steps, over which wsd goes down; 0 for a tenth of all."""
    weight_decay: float = 0.1
    """Of matrices; SSM parameters, norms, biases and embeddings have none."""
    clip: float = 1.0
    """The largest norm of a step's gradient."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: products in bf16 by autocast, parameters in fp32; fp32: all of it."""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """What each process has of the model; ddp: a copy; fsdp2: a part."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto, cpu or cuda: where to compute."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: int = 500
    """Steps between two evaluations on the held-out text; 0 for none."""
    save_every: int = 500
    """Steps between two checkpoints; there is one at the end, too."""
    keep: int = 3
    """How many checkpoints stay, the newest ones."""
    tracker: str | None = None
    """A tracker of Accelerate's to log to as well: tensorboard, wandb, ..."""
    seed: int = 0
    """Of all that is drawn at random."""


@dataclass(kw_only=True)
class NewModel:
    """The sizes of a model that starts from nothing: by default those of mamba-130m."""

    d_model: int = 768
    """Width of a new model."""
    n_layer: int = 24
    """Blocks of a new model."""
    d_state: int = 16
    """State of a channel of a new model."""


@dataclass(kw_only=True)
class LMConfig(LoopConfig):
    """Pretrain a Mamba on a corpus, or continue one."""

    data: str
    """The folder of the corpus."""
    start: str | None = None
    """The checkpoint to continue, a name on the hub or a folder; without it, a new model."""
    new: NewModel = field(default_factory=NewModel)
    length: int = 2048
    """Tokens of a row."""
    rows: int = 32
    """Rows of a step, of all processes together."""
    accumulate: int = 1
    """In how many parts, one after the other, a process takes its rows of a step."""
    compile: bool = False
    """true: compile each block with torch.compile."""
    checkpoint_activations: bool = False
    """true: keep only what goes into a block, and compute the rest again for its gradient."""
    eval_batches: int = 16
    """Steps' worth of held-out text in an evaluation."""


@dataclass(kw_only=True)
class EsiConfig(LoopConfig):
    """Train search, reader and injection for a checkpoint, which stays as it is; use it with --esi."""

    model: str
    """The checkpoint, a name on the hub or a folder."""
    questions: str | None = None
    """A file of JSON lines with "book", "question", "answer", and perhaps "start"."""
    data: str | None = None
    """In place of questions, what scripts/prepare_data.py wrote, for checkpoints with the default model's tokenizer."""
    out: str = "esi"
    """The folder of the run: each stage's checkpoints and metrics.jsonl, and at the end what was trained."""
    steps: int = 1000
    """Steps of the optimiser, of all three stages."""
    batch: int = 32
    """Questions of a step, of all processes together."""
    lr: float = 1e-3
    """The learning rate at its highest."""
    warmup: int = 200
    """Steps until the learning rate is at its highest, in each stage; at most a seventh of its steps."""
    weight_decay: float = 0.01
    """Of matrices; SSM parameters, norms, biases and embeddings have none."""
    parallel: Literal["ddp"] = "ddp"
    """What each process has of the model: a copy."""
    eval_every: int = 100
    """Steps between two evaluations on the questions that are held out; 0 to hold none out."""
    save_every: int = 100
    """Steps between two checkpoints; there is one at the end of each stage, too."""


@dataclass(kw_only=True)
class QAConfig(EsiConfig):
    """Train a checkpoint end to end to answer questions: its own weights, search, reader and injection."""

    out: str = "qa"
    """The folder of the run: each stage's checkpoints and metrics.jsonl, and at the end the model."""
    backbone_rate: float = BACKBONE_RATE
    """The share of the learning rate at which the checkpoint's own weights learn."""


_POSITIVE = ("steps", "log_every", "save_every", "keep", "length", "rows", "accumulate", "eval_batches", "lr", "clip")
_POSITIVE_OF_ANSWERING = ("batch", "backbone_rate")
_NOT_NEGATIVE = ("warmup", "decay_steps", "eval_every", "weight_decay", "seed")
# What a resumed run may set anew: it changes nothing of what is learned, but for rounding.
_FREE = {"out", "parallel", "device", "log_every", "eval_every", "save_every", "keep", "tracker"}
_FREE |= {"data", "questions", "model", "accumulate", "compile", "checkpoint_activations", "eval_batches"}
STAGES = 3  # of EsiConfig and QAConfig


class SettingError(TrainingError):
    """What is no setting, or no value of one."""


Config = TypeVar("Config", bound=LoopConfig)


def parse(kind: type[Config], command: str, arguments: Sequence[str]) -> tuple[Config, bool]:
    """The settings that arguments of a command give, with the YAML file that ``--config`` names; and whether to resume.

    Raises SettingError.
    """
    from jsonargparse import ArgumentError

    try:
        given = parser_of(kind, command).parse_args([_with_underscores(argument) for argument in arguments])
    except ArgumentError as error:
        raise SettingError(" ".join(str(error).split())) from error
    named = {f.name: given[f.name] for f in fields(kind)}
    if "new" in named:
        named["new"] = NewModel(**vars(given.new))
    config = kind(**named)
    for name in (*_POSITIVE, *_POSITIVE_OF_ANSWERING):
        if not named.get(name, 1) > 0:
            raise SettingError(f"{name} is {named[name]}: it must be above 0")
    for name in _NOT_NEGATIVE:
        if named[name] < 0:
            raise SettingError(f"{name} is {named[name]}: it must not be negative")
    if isinstance(config, EsiConfig):
        if (config.questions is None) == (config.data is None):
            raise SettingError("give either --questions FILE or --data FOLDER")
        if config.steps < STAGES:
            raise SettingError(f"steps is {config.steps}: there are {STAGES} stages, so give {STAGES} or more")
    return config, given.resume


def _with_underscores(argument: str) -> str:
    """``--save-every`` as ``--save_every``: a setting's name in the YAML file."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if argument.startswith("--") else argument


def parser_of(kind: type[LoopConfig], command: str) -> ArgumentParser:
    """The parser of a command's options, with what the docstrings above say of them."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=command, exit_on_error=False)
    parser.add_argument("--config", action="config", metavar="FILE", help="A YAML file of these settings.")
    parser.add_argument(
        "--resume", action="store_true", help="Go on from the newest checkpoint of --out, or begin where there is none."
    )
    parser.add_class_arguments(kind)
    return parser


def as_yaml(config: LoopConfig) -> str:
    """For ``--config``."""
    import yaml

    return yaml.safe_dump(asdict(config), sort_keys=False)


def contradictions(saved: dict[str, Any], config: LoopConfig) -> list[str]:
    """In which settings a run that ``saved`` (asdict) is of learned otherwise than this one would, in words."""
    now = asdict(config)
    return [
        f"{name} {saved.get(name)} and not {now.get(name)}"
        for name in saved | now
        if name not in _FREE and saved.get(name) != now.get(name)
    ]
