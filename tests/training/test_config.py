"""Settings from the command line, a YAML file, or both; and learning rates over the steps."""

import pytest

pytest.importorskip("jsonargparse")

from mamba_ssm.training.config import EsiConfig, LMConfig, QAConfig, SettingError, as_yaml, contradictions, parse
from mamba_ssm.training.schedule import cosine, wsd


def parse_lm(arguments):
    return parse(LMConfig, "mamba-esi train lm", arguments)


NEEDED = ["--out", "o", "--data", "d", "--steps", "10"]


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "lm.yaml"
    path.write_text("steps: 5\ndata: d\nlr: 0.25\nnew:\n  n_layer: 2\n  d_model: 64\n", encoding="utf-8")
    config, resume = parse_lm(
        ["--config", str(path), "--out", "o", "--new.d-model=16", "--save-every", "7", "--resume"]
    )
    assert resume
    assert (config.steps, config.lr, config.new.n_layer, config.new.d_model, config.save_every) == (5, 0.25, 2, 16, 7)


def test_what_is_printed_can_be_given_again(tmp_path):
    config, resume = parse_lm([*NEEDED, "--new.d-state", "8", "--schedule", "wsd"])
    assert not resume
    path = tmp_path / "lm.yaml"
    path.write_text(as_yaml(config), encoding="utf-8")
    assert parse_lm(["--config", str(path)]) == (config, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*NEEDED, "--lr", "fast"], "lr"),
        ([*NEEDED, "--lr", "-1"], "lr is -1.0: it must be above 0"),
        ([*NEEDED, "--rows", "0"], "rows is 0"),
        ([*NEEDED, "--warmup", "-1"], "warmup is -1"),
        ([*NEEDED, "--speed", "1"], "--speed"),
        ([*NEEDED, "--schedule", "square"], "schedule"),
        (NEEDED[:4], "steps"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_is_no_setting_is_one_line(arguments, said):
    with pytest.raises(SettingError) as error:
        parse_lm(arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


MODEL = ["--model", "m"]


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (EsiConfig, ["--questions", "q"], "model"),
        (EsiConfig, MODEL, "either --questions FILE or --data FOLDER"),
        (EsiConfig, [*MODEL, "--questions", "q", "--data", "d"], "either --questions FILE or --data FOLDER"),
        (EsiConfig, [*MODEL, "--questions", "q", "--steps", "2"], "there are 3 stages"),
        (EsiConfig, [*MODEL, "--questions", "q", "--batch", "0"], "batch is 0"),
        (EsiConfig, [*MODEL, "--questions", "q", "--backbone-rate", "0.1"], "backbone_rate"),
        (EsiConfig, [*MODEL, "--questions", "q", "--parallel", "fsdp2"], "parallel"),
        (QAConfig, [*MODEL, "--questions", "q", "--backbone-rate", "0"], "backbone_rate is 0"),
    ],
)
def test_what_is_no_setting_of_answering(kind, arguments, said):
    with pytest.raises(SettingError) as error:
        parse(kind, "mamba-esi train", arguments)
    assert said in str(error.value)


def test_defaults_of_answering():
    config, _ = parse(EsiConfig, "mamba-esi train esi", [*MODEL, "--questions", "q"])
    assert (config.steps, config.batch, config.lr, config.out) == (1000, 32, 1e-3, "esi")


def test_what_contradicts_a_checkpoint():
    from dataclasses import asdict

    saved = asdict(parse_lm(NEEDED)[0])
    free = ["--save-every", "3", "--accumulate", "2", "--parallel", "fsdp2", "--out", "p", "--compile", "true"]
    assert contradictions(saved, parse_lm([*NEEDED, *free])[0]) == []
    assert contradictions(saved, parse_lm([*NEEDED, "--clip", "2"])[0]) == ["clip 1.0 and not 2.0"]
    assert contradictions(saved | {"clip": None}, parse_lm(NEEDED)[0]) == ["clip None and not 1.0"]


def test_wsd_goes_up_stays_and_goes_down():
    shares = [wsd(10, 2, 4)(step) for step in range(10)]
    assert shares == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_goes_up_and_down_by_half_a_cosine():
    shares = [cosine(8, 2)(step) for step in range(9)]
    assert shares[0] == 0.5
    assert shares[4] == pytest.approx(0.5)
    assert shares[2] - 0.5 == pytest.approx(0.5 - shares[6])
    assert shares[8] == pytest.approx(0)
    assert cosine(8, 0)(0) == 1.0
