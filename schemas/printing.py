"""How values look in a document: as Postgres prints them, NULL as nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import wraps
from typing import Any, Final

from jinja2 import Undefined, UndefinedError
from jinja2.filters import FILTERS as _JINJA


def printed(value: Any) -> str:
    """The text of one value. Raises UndefinedError for a missing column, TypeError for an uncalled method."""
    exact = _PRINTED.get(type(value))
    if exact is not None:
        return exact(value)
    if isinstance(value, str | Undefined):
        return str(value)
    if callable(value):
        raise TypeError("a method is not text: call it")
    return _printed_list(value) if isinstance(value, Iterable) else str(value)


def _printed_list(values: Iterable[Any]) -> str:
    return ", ".join(printed(value) for value in values if value is not None)


def printed_float(value: float) -> str:
    """Shortest digits that give the number again, without exponent, as `to_jsonb` prints it.

    A row printed at intake and the same row read back from jsonb must give the same text.
    """
    digits = format(Decimal(repr(value)), "f").removesuffix(".0")
    return "0" if digits == "-0" else digits


def printed_json(value: Any) -> str:
    """JSON with every letter as itself."""
    return json.dumps(value, ensure_ascii=False)


_PRINTED: Final[Mapping[type, Callable[[Any], str]]] = {
    str: lambda value: value,
    type(None): lambda value: "",
    bool: lambda value: "true" if value else "false",
    int: str,
    float: printed_float,
    dict: printed_json,
    list: _printed_list,
    tuple: _printed_list,
}


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
    "striptags": _JINJA["striptags"],
    "string": lambda text: text,
    "title": _JINJA["title"],
    "trim": str.strip,
    "truncate": _truncate,
    "upper": str.upper,
    "wordcount": lambda text: len(text.split()),
}

_AS_JINJA: Final = (
    "abs", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select",
    "selectattr", "sort", "sum", "unique",
)  # fmt: skip

#: Every filter a template may use; what is random, escapes HTML or makes long text out of short is not here.
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    **{name: _JINJA[name] for name in _AS_JINJA},
    **{name: _of_text(function) for name, function in _TEXT.items()},
    "join": _join,
    "tojson": printed_json,
}
