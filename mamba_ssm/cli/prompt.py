"""Lines that are typed in a terminal, with history and completion. Needs prompt_toolkit, of the extra ``chat``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


class _Commands(Completer):
    """The names of commands, and files after those that take one."""

    def __init__(self, commands: Sequence[str], with_files: Sequence[str]) -> None:
        self.commands, self.with_files, self.paths = commands, with_files, PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        name, space, file = document.text_before_cursor.partition(" ")
        if space and name in self.with_files:
            yield from self.paths.get_completions(Document(file), complete_event)
        elif name.startswith("/") and not space:
            yield from (Completion(command, -len(name)) for command in self.commands if command.startswith(name))


def typed_lines(commands: Sequence[str], with_files: Sequence[str]) -> Iterator[str]:
    """Lines until Ctrl-D; Ctrl-C gives a line up."""
    completer = _Commands(commands, with_files)
    session: PromptSession[str] = PromptSession(completer=completer, complete_while_typing=False)
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
