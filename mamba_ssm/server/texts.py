"""From tokens to text that may be shown as it comes: whole characters, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what the bytes of half a character become
LONGEST_CHARACTER = 4  # bytes, and so tokens: what is longer unfinished is no character


class TextStream:
    """The text of one continuation. ``stopped`` once a stop string came."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, stops
        self._unfinished: list[int] = []
        self._held = ""  # may turn out to begin a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """Another token -> what can be shown now."""
        self._unfinished.append(token)
        text = self._decode(self._unfinished)
        if text.endswith(UNFINISHED) and len(self._unfinished) < LONGEST_CHARACTER:
            return ""
        self._unfinished = []
        return self._take(text)

    def flush(self) -> str:
        """No more tokens come: what was held back."""
        if self.stopped:
            return ""
        text = self._take(self._decode(self._unfinished))
        self._unfinished = []
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _take(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._held + text
        at = min((found for stop in self._stops if (found := text.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.stopped, self._held = True, ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of text are the first of stop."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
