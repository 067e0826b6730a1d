"""What Connect is given: complete, without secrets, and only identifiers in what reaches Debezium raw."""

from __future__ import annotations

import dataclasses
import json

import pytest

from connectors.debezium.config import CONNECTOR_CLASS, HEARTBEAT_QUERY, ConnectorConfig
from connectors.debezium.naming import Naming
from connectors.postgres.source_schema import TABLES
from schemas.errors import SettingsError

CONFIG = ConnectorConfig(
    naming=Naming("shop", 1),
    host="db.example",
    port=5432,
    database="shop",
    tables=("shop.content", "shop.customers"),
    excluded=("shop.customers.email",),
    placeholder="__upwell_unavailable_0123__",
    secrets_file="/run/secrets/shop.properties",
    registry_url="http://registry:8080/apis/registry/v2",
)


def test_nothing_that_loses_changes_silently_is_left_to_a_default() -> None:
    rendered = CONFIG.render()
    assert rendered["connector.class"] == CONNECTOR_CLASS
    assert rendered["plugin.name"] == "pgoutput"
    assert rendered["publication.autocreate.mode"] == "disabled"
    assert rendered["skipped.operations"] == "none"
    assert rendered["errors.tolerance"] == "none"
    assert rendered["tombstones.on.delete"] == "true"
    assert rendered["snapshot.mode"] == "no_data"
    assert rendered["slot.drop.on.stop"] == "false"
    assert rendered["slot.name"] == "upwell_shop_1"
    assert rendered["publication.name"] == "upwell_shop"
    assert rendered["topic.prefix"] == "shop_1"
    assert rendered["poll.interval.ms"] == "20"


def test_no_internal_key_and_no_automatic_topics() -> None:
    assert not [key for key in CONFIG.render() if key.startswith(("internal.", "topic.creation."))]


def test_lists_are_anchored_patterns_with_escaped_dots() -> None:
    rendered = CONFIG.render()
    assert rendered["table.include.list"].split(",") == [
        "shop\\.content",
        "shop\\.customers",
        "upwell\\.heartbeat",
        "upwell\\.signal",
        "upwell\\.canary",
    ]
    assert rendered["column.exclude.list"] == "shop\\.customers\\.email"
    assert "column.exclude.list" not in dataclasses.replace(CONFIG, excluded=()).render()


def test_user_and_password_are_references() -> None:
    rendered = CONFIG.render()
    assert rendered["database.user"] == "${file:/run/secrets/shop.properties:user}"
    assert rendered["database.password"] == "${file:/run/secrets/shop.properties:password}"


def test_a_secrets_file_that_would_break_its_reference_is_refused() -> None:
    with pytest.raises(SettingsError, match="secrets file"):
        dataclasses.replace(CONFIG, secrets_file="C:/secrets").render()


@pytest.mark.parametrize("side", ["key", "value"])
def test_apicurio_writes_the_confluent_wire_format(side: str) -> None:
    rendered = CONFIG.render()
    assert rendered[f"{side}.converter"] == "io.apicurio.registry.utils.converter.AvroConverter"
    prefix = f"{side}.converter.apicurio.registry."
    assert rendered[prefix + "use-id"] == "contentId"
    assert rendered[prefix + "headers.enabled"] == "false"
    assert rendered[prefix + "id-handler"].endswith("Legacy4ByteIdHandler")
    assert not [key for key in rendered if "find-latest" in key]


@pytest.mark.parametrize("side", ["key", "value"])
def test_confluents_converter(side: str) -> None:
    rendered = dataclasses.replace(
        CONFIG, converter="confluent", registry_url="http://registry:8081"
    ).render()
    assert rendered[f"{side}.converter"] == "io.confluent.connect.avro.AvroConverter"
    assert rendered[f"{side}.converter.schema.registry.url"] == "http://registry:8081"
    assert not [key for key in rendered if "apicurio" in key]


def test_all_values_are_strings_so_that_a_second_apply_finds_no_difference() -> None:
    rendered = CONFIG.render()
    assert json.loads(json.dumps(rendered)) == rendered
    assert all(isinstance(value, str) for value in rendered.values())


@pytest.mark.parametrize(
    "table", ["content", "shop.Content", 'shop."x"', "shop.a,b", "shop.a.b", "shop.content; drop table x"]
)
def test_only_identifiers_reach_debezium(table: str) -> None:
    with pytest.raises(SettingsError):
        dataclasses.replace(CONFIG, tables=(table,)).render()


@pytest.mark.parametrize("name", ["Shop", "shop-1", "", "a" * 63, "shop'"])
def test_a_deployment_name_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(SettingsError):
        Naming(name, 1)


def test_two_deployments_never_share_a_prefix() -> None:
    assert Naming("shop", 11).topic_prefix != Naming("shop1", 1).topic_prefix
    assert Naming("shop", 11).slot != Naming("shop1", 1).slot


def test_the_heartbeat_writes_to_a_table_that_the_migration_makes() -> None:
    assert "upwell.heartbeat (id, at)" in HEARTBEAT_QUERY
    assert "upwell.heartbeat (id int PRIMARY KEY, at timestamptz" in TABLES["heartbeat"]


def test_h31_the_heartbeat_commits_at_the_source() -> None:
    """H31. A row carries the commit before its own: on an idle source only another commit has the canary's stored."""
    rendered = CONFIG.render()
    assert rendered["heartbeat.action.query"] == HEARTBEAT_QUERY
    assert rendered["heartbeat.interval.ms"] == "2000"
