"""All tasks that lie in a haystack, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mamba_ssm.training.recall import needles, relations, stories
from mamba_ssm.training.recall.example import Example
from mamba_ssm.training.recall.words import Words

TASKS: dict[str, Callable[[Words], Example]] = {
    "single_word": partial(needles.single, kind="word"),
    "single_number": partial(needles.single, kind="number"),
    "single_uuid": partial(needles.single, kind="uuid"),
    "multi_key": needles.multi_key,
    "multi_value": needles.multi_value,
    "multi_query": needles.multi_query,
    "variables": needles.variables,
    "chapters": needles.chapters,
    "alias": needles.alias,
    "alias_development": partial(needles.alias, of=relations.DEVELOPMENT),
    "passkey": needles.passkey,
    "qa1": stories.qa1,
    "qa2": stories.qa2,
    "qa3": stories.qa3,
}
UNSHAREABLE = frozenset({"passkey", "qa1", "qa2", "qa3"})
"""Examples whose questions would have several answers if they lay in one haystack."""
