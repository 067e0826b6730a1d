"""How values look in a document: as Postgres prints them, NULL as nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Final

from jinja2 import Undefined, UndefinedError
from jinja2.filters import FILTERS as _JINJA


def printed(value: Any) -> str:
    """The text of one value. Raises UndefinedError for a missing column, TypeError for a method not called."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return printed_float(value)
    if isinstance(value, Mapping):
        return printed_json(value)
    if isinstance(value, list | tuple):
        return ", ".join(printed(item) for item in value)
    if callable(value) and not isinstance(value, Undefined):
        raise TypeError("a method is not text: call it")
    if isinstance(value, Iterable) and not isinstance(value, str | Undefined):
        return printed(list(value))
    return str(value)


def printed_float(value: float) -> str:
    """Shortest digits that give the number again, with an exponent from 15 digits on, as Postgres has it."""
    if value == 0 or not 1e-4 <= abs(value) < 1e15:
        digits, _, exponent = f"{value!r}".partition("e")
        if exponent or value in (0, float("inf"), float("-inf")) or value != value:
            return f"{digits.removesuffix('.0')}{'e' + exponent if exponent else ''}"
        mantissa = f"{value:.17e}" if float(f"{value:.15e}") != value else f"{value:.15e}"
        head, _, tail = mantissa.partition("e")
        return f"{head.rstrip('0').rstrip('.')}e{tail}"
    return repr(value).removesuffix(".0")


def printed_json(value: Any) -> str:
    """JSON with every letter as itself."""
    return json.dumps(value, ensure_ascii=False)


def _of_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """A text filter that takes what the value prints: NULL | upper is empty, not NONE."""

    @wraps(function)
    def filtered(value: Any, *args: Any, **kwargs: Any) -> Any:
        return function(_defined(value), *args, **kwargs)

    return filtered


def _defined(value: Any) -> str:
    if isinstance(value, Undefined) and not value:  # StrictUndefined raises here
        raise UndefinedError("a value is undefined")
    return printed(value)


def _join(value: Any, separator: str = "", attribute: str | None = None) -> str:
    """`join` of what the items print; NULL items are left out, NULL joins to nothing."""
    items = [item[attribute] if attribute else item for item in (() if value is None else value)]
    return separator.join(printed(item) for item in items if item is not None)


def _truncate(text: str, length: int = 255, killwords: bool = False, end: str = "...") -> str:
    """At most `length` letters, cut at a word unless `killwords`."""
    if len(text) <= length:
        return text
    cut = text[: max(0, length - len(end))]
    return (cut if killwords else cut.rsplit(" ", 1)[0]) + end


def _replace(text: str, old: str, new: str) -> str:
    return text.replace(old, printed(new))


_TEXT: Final[Mapping[str, Callable[..., Any]]] = {
    "capitalize": str.capitalize,
    "lower": str.lower,
    "replace": _replace,
    "striptags": lambda text: _JINJA["striptags"](text),
    "string": lambda text: text,
    "title": _JINJA["title"],
    "trim": str.strip,
    "truncate": _truncate,
    "upper": str.upper,
    "wordcount": lambda text: len(text.split()),
}

_AS_JINJA: Final = (
    "abs count d default dictsort first float groupby int items last length list map max min reject rejectattr "
    "reverse round select selectattr sort sum unique"
).split()

#: Every filter a template may use; what is random, escapes HTML or makes long text out of short is not here.
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    **{name: _JINJA[name] for name in _AS_JINJA},
    **{name: _of_text(function) for name, function in _TEXT.items()},
    "join": _join,
    "tojson": printed_json,
}
