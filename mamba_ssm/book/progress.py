"""A bar on standard error while a book is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mamba_ssm.book.source import Progress as Done
from mamba_ssm.book.source import Report


@contextmanager
def bar(shown: bool = True) -> Iterator[Report | None]:
    """Gives what to report to. Shows nothing where standard error is no terminal, and leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("Reading"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("read", total=None, speed="")

        def report(done: Done) -> None:
            elapsed = progress.tasks[task].elapsed or 1e-9
            speed = f"{done.tokens:,} tokens, {done.tokens / elapsed:,.0f} a second"
            progress.update(task, completed=done.bytes, total=done.total, speed=speed)

        yield report
