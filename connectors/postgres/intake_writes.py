"""The second half of an intake transaction: a plan as arrays for `unnest`, and as statements in lock order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from schemas.change import TopicPartition, Undecodable
from schemas.sink import IntakePlan, IntakeRequest, RecordWrite

Parameters = dict[str, Any]


def storable(text: str) -> str:
    """Text that Postgres takes: without NUL and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def record_arrays(writes: Sequence[RecordWrite]) -> Parameters:
    """Columns of `upsert_records`."""
    states = [write.state for write in writes]
    return {
        "keys": [write.key for write in writes],
        "rows": [None if state.row is None else Jsonb(dict(state.row)) for state in states],
        "text_hashes": [state.text_hash for state in states],
        "lineages": [state.version.lineage for state in states],
        "partitions": [write.at.partition for write in writes],
        "offsets": [state.version.offset for state in states],
        "deleted": [state.deleted for state in states],
        "streamed": [state.streamed for state in states],
        "lsns": [state.lsn for state in states],
        "commits": [state.sequence_last_commit for state in states],
        "transactions": [state.transaction_id for state in states],
        "fences": [state.fence_lsn for state in states],
        "committed": [state.committed_at for state in states],
    }


def pending_arrays(writes: Sequence[RecordWrite], generations: Sequence[int]) -> Parameters:
    """Columns of `upsert_pending`."""
    return {
        "keys": [write.key for write in writes],
        "lineages": [write.state.version.lineage for write in writes],
        "offsets": [write.state.version.offset for write in writes],
        "lanes": [write.lane.value for write in writes],
        "since": [write.committed_since for write in writes],
        "changes": [write.changes if write.committed_since is not None else 0 for write in writes],
        "generations": list(generations),
    }


def accepted_arrays(plan: IntakePlan, generations: Sequence[int]) -> Parameters:
    """Key and version of each accepted change, and in which generations its text is the one that was there."""
    accepted = [
        (write.key, write.state.version, [g for g in generations if write.embed_in(g) == "keep"])
        for write in plan.writes
    ]
    accepted += [(key, version, []) for key, version in plan.truncated.items()]
    return {
        "keys": [key for key, _, _ in accepted],
        "lineages": [version.lineage for _, version, _ in accepted],
        "offsets": [version.offset for _, version, _ in accepted],
        "kept": ["{" + ",".join(map(str, kept)) + "}" for _, _, kept in accepted],
    }


def dead_letter_arrays(letters: Sequence[Undecodable]) -> Parameters:
    """Columns of `insert_dead_letters`; headers keep their order and their bytes, in hex."""
    return {
        "topics": [letter.at.topic for letter in letters],
        "partitions": [letter.at.partition for letter in letters],
        "lineages": [letter.version.lineage for letter in letters],
        "offsets": [letter.version.offset for letter in letters],
        "keys": [letter.key for letter in letters],
        "key_bytes": [letter.key_bytes for letter in letters],
        "value_bytes": [letter.value_bytes for letter in letters],
        "headers": [
            Jsonb([[name, None if value is None else value.hex()] for name, value in letter.headers])
            for letter in letters
        ],
        "classes": [letter.error_class for letter in letters],
        "errors": [storable(letter.error) for letter in letters],
        "committed": [letter.committed_at for letter in letters],
    }


def audit_arrays(plan: IntakePlan) -> Parameters:
    """One row for each applied change, deletion and dead letter; ranges with counts for the rest."""
    rows: list[tuple[Any, ...]] = []
    for write in plan.writes:
        if write.outcome.value in ("applied", "deleted"):
            state, origin = write.state, write.origin
            rows.append(
                (
                    write.outcome.value, write.key, write.at.topic, write.at.partition, state.version.offset,
                    state.version.offset, 1, state.version.lineage, origin.lsn, origin.transaction_id,
                    origin.committed_at, state.text_hash,
                )
            )  # fmt: skip
    for letter in plan.dead_letters:
        at, offset = letter.at, letter.version.offset
        rows.append(
            (
                "dead_letter", letter.key, at.topic, at.partition, offset, offset, 1, letter.version.lineage, None,
                None, letter.committed_at, None,
            )
        )  # fmt: skip
    for each in plan.ranges:
        rows.append(
            (
                each.outcome.value, None, each.at.topic, each.at.partition, each.first, each.last, each.count,
                None, None, None, None, None,
            )
        )  # fmt: skip
    if plan.fence is not None:
        rows.append(
            ("truncated", None, None, None, None, None, 1, plan.fence.lineage, plan.fence.lsn, None,
             plan.fence_committed_at, None)
        )  # fmt: skip
    names = (
        "actions", "keys", "topics", "partitions", "first", "last", "counts", "lineages", "lsns", "transactions",
        "committed", "text_hashes",
    )  # fmt: skip
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def position_arrays(
    request: IntakeRequest, positions: Mapping[TopicPartition, int], *, new: bool
) -> Parameters:
    """Columns of `first_positions` (`new`) or `move_positions`."""
    chosen = [at for at in sorted(positions) if (request.positions.get(at) is None) is new]
    return {
        "topics": [at.topic for at in chosen],
        "partitions": [at.partition for at in chosen],
        "expected": [request.positions.get(at) for at in chosen],
        "next": [positions[at] for at in chosen],
    }


def simple_statements(
    plan: IntakePlan, generations: Sequence[int], *, audited: bool
) -> Iterator[tuple[str, Parameters]]:
    """Statements on tables that all collections share, by name, in lock order after the records."""
    for alike, keys in _alike(plan.writes, generations, "remove"):
        yield "remove_pending_of", {"keys": list(keys), "generations": alike}
    for alike, keys in _alike(plan.writes, generations, "pending"):
        yield "upsert_pending", pending_arrays([write for write in plan.writes if write.key in keys], alike)
    if plan.writes or plan.truncated:
        yield "close_dead_letters", accepted_arrays(plan, generations)
    if plan.dead_letters:
        yield "insert_dead_letters", dead_letter_arrays(plan.dead_letters)
    audit = audit_arrays(plan)
    if audited and audit["actions"]:
        yield "insert_audit", audit
    if plan.repairs_done:
        yield "finish_repairs", {"keys": sorted(plan.repairs_done)}
    if any(write.embed == "pending" for write in plan.writes):
        yield "notify_pending", {}
    if plan.violations:
        yield "count_violations", {"violations": plan.violations}


def _alike(
    writes: Sequence[RecordWrite], generations: Sequence[int], embed: str
) -> Iterator[tuple[list[int], dict[str, None]]]:
    """Generations with the keys of which their vectors are to become the same, nearly always all of them at once."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number in generations:
        keys = tuple(write.key for write in writes if write.embed_in(number) == embed)
        if keys:
            found.setdefault(keys, []).append(number)
    for keys, alike in found.items():
        yield alike, dict.fromkeys(keys)
