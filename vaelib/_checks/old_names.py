"""Arguments of version 0.1: what to write now."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def moved(**hints: str) -> Callable[[F], F]:
    """Decorator: a keyword of ``hints`` raises ``TypeError`` with its hint; the signature stays without it."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            for name in hints.keys() & keywords.keys():
                raise TypeError(f"`{name}` is no argument any more: write {hints[name]}.")
            return function(*arguments, **keywords)

        return checked  # type: ignore[return-value]

    return decorate
