"""``mamba-esi ask``: answer questions about a book."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mamba_ssm.cli.options import (
    BookArgument,
    Device,
    DeviceOption,
    EsiOption,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    PassagesOption,
    TopKOption,
)
from mamba_ssm.cli.output import write
from mamba_ssm.errors import QuestionError


def ask(
    book: BookArgument,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="What to ask.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help='Ask every line of FILE: plain text, or JSON lines with "question".',
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    model: ModelOption = None,
    esi: EsiOption = None,
    top_k: TopKOption = None,
    device: DeviceOption = Device.auto,
    no_esi: Annotated[
        bool, typer.Option("--no-esi", help="Read the whole book with the model alone, without search and injection.")
    ] = False,
    max_new_tokens: MaxNewTokensOption = 32,
    passages: PassagesOption = 8,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the scores along the book to a .png, .svg or .pdf file."),
    ] = None,
) -> None:
    """Answer a question about BOOK, with the passages that the answer comes from."""
    if (question is None) == (questions is None):
        raise typer.BadParameter("give either a QUESTION or --questions FILE", param_hint="QUESTION")
    if question is not None and not question.strip():
        raise typer.BadParameter("the question is empty", param_hint="QUESTION")
    if plot is not None and (question is None or no_esi):
        raise typer.BadParameter("one QUESTION is drawn, and its search", param_hint="--plot")
    asked = [question] if question is not None else read_questions(questions)  # type: ignore[arg-type]
    from mamba_ssm.book import Engine, bar, open_book

    if plot is not None:
        from mamba_ssm.book.plot import draw, require

        require(plot)
    with open_book(book, Engine.load(model, device.value, esi)) as opened, bar() as report:
        answers = opened.ask_each(
            asked, top_k=top_k, passages=passages, max_new_tokens=max_new_tokens, esi=not no_esi, report=report
        )
        first = next(answers, None)  # the book was read when it comes, and the bar must go before it is shown
        shown = [] if first is None else [first]
        if plot is not None and first is not None:
            draw(opened.relevance(first.question), first, plot)
    if not as_json:
        from mamba_ssm.cli.output import show
    for answer in (*shown, *answers):
        if as_json:
            write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")
        else:
            show(answer)


def read_questions(path: Path) -> list[str]:
    """The questions of a file, one a line; blank lines are none. Raises QuestionError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
    asked = [_question(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not asked:
        raise QuestionError(f"{path}: no questions in it; write one a line")
    return asked


def _question(line: str, place: str) -> str:
    if not line.lstrip().startswith("{"):
        return line.strip()
    value: Any
    try:
        value = json.loads(line)["question"]
    except (ValueError, KeyError, RecursionError) as error:
        raise QuestionError(f'{place}: not a JSON object with "question"; mend the line') from error
    if not isinstance(value, str) or not value.strip():
        raise QuestionError(f'{place}: "question" must be a string with words in it; mend the line')
    return value.strip()
