"""The template: what it prints, what it refuses, and what it says when a row does not fit."""

from __future__ import annotations

import hashlib

import pytest

from schemas.change import JsonValue
from schemas.errors import TemplateError
from schemas.template import Template, text_hash

ROW: dict[str, JsonValue] = {
    "title": "Tea",
    "body": None,
    "tags": ["green", None, "hot"],
    "price": "1.50",
    "weight": 2.0,
    "published": True,
    "details": {"origin": {"country": "Japan"}, "items": [1, 2]},
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ title }}: {{ body }}", "Tea:"),
        ("{{ body | upper }}{{ body ~ title }}", "Tea"),
        ("{{ tags }}", "green, hot"),
        ("{{ tags | join(' ') }}", "green hot"),
        ("{{ body | join(' ') }}", ""),
        ("{{ price }} {{ weight }} {{ weight * 2 }}", "1.50 2 4"),
        ("{{ published }} {{ 'yes' if published }}{{ 'no' if not published }}", "true yes"),
        ("{{ details.origin.country }} {{ details['items'] }} {{ details.items }}", "Japan 1, 2 1, 2"),
        ("{{ details.origin }}", '{"country": "Japan"}'),
        (
            "{% for tag in tags %}{{ loop.index }}{{ tag }}{{ ';' if not loop.last }}{% endfor %}",
            "1green;2;3hot",
        ),
        ("{% set title = title | lower %}{{ title }}", "tea"),
        ("{{ title.upper() }} {{ title.replace('T', 'S') }}", "TEA Sea"),
        ("{% if missing is defined %}{{ missing }}{% endif %}", ""),
        ("  \n{{ title }}\0 \n", "Tea"),
        ("{{ '<b>Tea</b>' | striptags }} {{ '<b>' }}", "Tea <b>"),
    ],
)
def test_prints_values_as_postgres_does(source: str, text: str) -> None:
    assert Template(source).render(ROW) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e15, "1000000000000000"),
        (1.5e20, "150000000000000000000"),
        (123456789012345.0, "123456789012345"),
        (1e-5, "0.00001"),
        (0.1, "0.1"),
        (-0.0, "0"),
    ],
)
def test_prints_floats_as_postgres_does(value: float, text: str) -> None:
    assert Template("{{ weight }}").render({"weight": value}) == text


def test_columns_are_what_the_template_reads() -> None:
    template = Template("{% set a = title %}{{ a }}{% for tag in tags %}{{ tag ~ price }}{% endfor %}")
    assert template.columns == {"title", "tags", "price"}


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ title['__class__'] }}",
        "{{ title._private }}",
        "{{ range(10**9) }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ title.encode() }}",
        "{{ title.format(1) }}",
        "{{ title() }}",
        "{{ 2 ** 1000000 }}",
        "{{ title | random }}",
        "{{ title | attr('upper') }}",
        "{{ tags | map('attr', 'x') }}",
        "{{ tags | map(title) }}",
        "{{ title is nonsense }}",
        "{% include 'x' %}",
        "{% import 'x' as x %}",
        "{% extends 'x' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}",
        "{% for a in tags recursive %}{{ loop(a) }}{% endfor %}",
        "{% for a in body %}{% for b in body %}{% for c in body %}x{% endfor %}{% endfor %}{% endfor %}",
        "{{ self }}",
        "{{ title",
        "{% if %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_refuses_what_is_not_safe_with_one_line(source: str) -> None:
    with pytest.raises(ValueError, match="template") as refused:
        Template(source)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{{ nothing }}", "nothing"),
        ("{{ nothing | upper }}", "nothing"),
        ("{{ title }}\n{{ body + 'x' }}", "line 2, column 'body'"),
        ("{{ title * 1000000000 }}", "title"),
        ("{{ '%99999999d' % weight }}", "weight"),
        ("{{ details.nothing }}", "nothing"),
        ("{{ title.upper }}", "title"),
        ("{{ tags | sum }}", "tags"),
    ],
)
def test_names_the_column_that_one_row_cannot_render(source: str, named: str) -> None:
    with pytest.raises(TemplateError) as failed:
        Template(source).render(ROW)
    assert named in str(failed.value)


def test_messages_hold_no_row_contents() -> None:
    with pytest.raises(TemplateError) as failed:
        Template("{{ details[title] }}").render(ROW)
    assert "Tea" not in str(failed.value)


def test_half_a_surrogate_is_a_template_error() -> None:
    with pytest.raises(TemplateError):
        Template("{{ title }}").render({"title": "\ud800"})


def test_a_method_of_null_cannot_be_called() -> None:
    with pytest.raises(TemplateError):
        Template("{{ body.upper() }}").render(ROW)


def test_compiles_once() -> None:
    assert Template("{{ title }}!")._compiled is Template("{{ title }}!")._compiled


def test_hash_is_sha256_of_utf8() -> None:
    assert text_hash("Tee für zwei") == hashlib.sha256("Tee für zwei".encode()).digest()
