"""The template of a collection: the text that is made of a row. Jinja2, sandboxed and strict.

A template may name columns, use filters and tests, `if`, `for` and `set`, and call the harmless methods
of text, lists and mappings. Everything else is refused when the spec is read, so a bad template never meets
a row, and the same row always gives the same text: nothing random, no clock, no memory address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NamedTuple

import jinja2
from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.change import JsonValue
from schemas.errors import TemplateError
from schemas.printing import FILTERS, printed

#: Statements and expressions that a template may consist of; no macro, include, import or recursion.
_ALLOWED: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign,
    nodes.AssignBlock, nodes.With, nodes.FilterBlock, nodes.Const, nodes.Name, nodes.Filter, nodes.Test,
    nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Keyword, nodes.Compare, nodes.Operand, nodes.And,
    nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div,
    nodes.FloorDiv, nodes.Mod, nodes.Concat, nodes.CondExpr, nodes.List, nodes.Tuple, nodes.Dict,
    nodes.Pair, nodes.Slice,
)  # fmt: skip

#: Methods of text, lists, mappings and `loop` that neither change anything nor make long text out of short.
_METHODS: Final = frozenset((
    "capitalize", "casefold", "changed", "count", "cycle", "endswith", "find", "get", "index",
    "isdigit", "items", "join", "keys", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper", "values",
))  # fmt: skip

#: Loops within loops beyond this could run for hours over one long document.
_DEEPEST_LOOP: Final = 2


class _Environment(ImmutableSandboxedEnvironment):
    """Attributes are items or listed methods, items are never attributes, `*` and `%` are arithmetic."""

    intercepted_binops = frozenset({"*", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        known = isinstance(obj, jinja2.runtime.LoopContext) or attribute in _METHODS
        if not isinstance(obj, jinja2.Undefined) and known and hasattr(obj, attribute):
            return getattr(obj, attribute)
        return self.undefined(hint=f"a value has no attribute {attribute!r}", obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[argument]
        except (AttributeError, LookupError, TypeError):
            return self.undefined(hint="a value has no such item", obj=obj)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            raise SecurityError(f"operator {operator} of something that is not a number")
        return super().call_binop(context, operator, left, right)


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, autoescape=False, finalize=printed, loader=None)
    environment.globals.clear()
    environment.filters.clear()
    environment.filters.update(FILTERS)
    return environment


_ENVIRONMENT: Final = _environment()


class _Compiled(NamedTuple):
    template: jinja2.Template
    columns: frozenset[str]
    columns_by_line: Mapping[int, tuple[str, ...]]


@lru_cache(maxsize=256)
def _compile(source: str) -> _Compiled:
    """Raises ValueError with one line that names the line of the template."""
    try:
        tree = _ENVIRONMENT.parse(source)
        _check(tree, 0)
        columns = frozenset(meta.find_undeclared_variables(tree))
        by_line: dict[int, tuple[str, ...]] = {}
        for name in tree.find_all(nodes.Name):
            if name.name in columns and name.name not in by_line.get(name.lineno, ()):
                by_line[name.lineno] = (*by_line.get(name.lineno, ()), name.name)
        template = _ENVIRONMENT.from_string(_print_operands(tree))
        template.globals = {}  # there are none; Jinja would merge its layers of them at each row
        return _Compiled(template, columns, by_line)
    except TemplateSyntaxError as error:
        raise ValueError(f"template, line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise ValueError("template: nested too deeply") from None


def _check(node: nodes.Node, loops: int) -> None:
    """Refuse whatever is not listed as harmless. Raises ValueError."""
    _refuse_unless(isinstance(node, _ALLOWED), node, f"{type(node).__name__.lower()} is not allowed")
    if isinstance(node, nodes.Getattr):
        _refuse_unless(not node.attr.startswith("_"), node, f"attribute {node.attr!r} is not allowed")
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        dunder = str(node.arg.value).startswith("__")
        _refuse_unless(not dunder, node, f"item {node.arg.value!r} is not allowed")
    elif isinstance(node, nodes.Name):
        fine = node.name != "self" and "__" not in node.name
        _refuse_unless(fine, node, f"name {node.name!r} is not allowed")
    elif isinstance(node, nodes.Call):
        known = isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS
        _refuse_unless(known, node, "only methods of text, lists and mappings can be called")
    elif isinstance(node, nodes.Filter | nodes.Test):
        _check_named(node)
    elif isinstance(node, nodes.For):
        loops += 1
        _refuse_unless(not node.recursive and loops <= _DEEPEST_LOOP, node, "loops are nested too deeply")
    for child in node.iter_child_nodes():
        _check(child, loops)


def _check_named(node: nodes.Filter | nodes.Test) -> None:
    """The filter or test must exist, and what `map`, `select` and `reject` name too. Raises ValueError."""
    known: Mapping[str, Any] = FILTERS if isinstance(node, nodes.Filter) else _ENVIRONMENT.tests
    kind = type(node).__name__.lower()
    _refuse_unless(node.name in known, node, f"there is no {kind} {node.name!r}")
    if kind == "filter" and node.name in {"map", "select", "reject"} and node.args:
        inner: Mapping[str, Any] = FILTERS if node.name == "map" else _ENVIRONMENT.tests
        first = node.args[0]
        named = isinstance(first, nodes.Const) and first.value in inner
        _refuse_unless(named, node, f"{node.name!r} needs the name of a filter or test that exists")


def _refuse_unless(fine: bool, node: nodes.Node, what: str) -> None:
    if not fine:
        raise ValueError(f"template, line {node.lineno}: {what}")


def _print_operands(tree: nodes.Template) -> nodes.Template:
    """`a ~ b` joins what the two print, so that NULL is empty there too."""
    for concat in tree.find_all(nodes.Concat):
        concat.nodes = [
            nodes.Filter(operand, "string", [], [], None, None, lineno=concat.lineno)
            for operand in concat.nodes
        ]
    return tree


class Template:
    """A compiled template. `columns` are the names it reads from a row."""

    __slots__ = ("_compiled", "columns", "source")

    def __init__(self, source: str) -> None:
        """Raises ValueError with one clear line for a syntax error or anything that is not safe."""
        self.source = source
        self._compiled = _compile(source)
        self.columns: Final = self._compiled.columns

    def render(self, row: Mapping[str, JsonValue]) -> str:
        """The row's text, stripped; NULL is empty, the rest as Postgres prints it.

        Raises TemplateError, which names the columns of the line that failed and never a value.
        """
        used = {column: row[column] for column in self.columns if column in row}
        try:
            text = self._compiled.template.render(used).replace("\0", "").strip()
            text.encode()
        except Exception as error:
            why = error.message if isinstance(error, UndefinedError) else type(error).__name__
            raise TemplateError(f"the template cannot render this row: {why}, {self._where(error)}") from None
        return text

    def _where(self, error: Exception) -> str:
        line, trace = 0, error.__traceback__
        while isinstance(trace, TracebackType):
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = trace.tb_lineno
            trace = trace.tb_next
        columns = self._compiled.columns_by_line.get(line) or tuple(sorted(self.columns))
        names = ", ".join(repr(column) for column in columns)
        return f"line {line}, column {names}"


def text_hash(text: str, template: str = "") -> bytes:
    """SHA-256 of template and text: equal texts of different templates are not the same text. 32 bytes."""
    return hashlib.sha256(_digest(template) + text.encode()).digest()


@lru_cache(maxsize=256)
def _digest(template: str) -> bytes:
    return hashlib.sha256(template.encode()).digest() if template else b""
