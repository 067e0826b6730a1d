"""Every guard of upwell: where it stands, what it keeps from happening, and the tests that fail when it is taken out.

`make mutations` takes out each of them and runs its tests (tests/mutations/runner.py); so does the parallel rung of
`make test`. A guard that stands in several places has an entry for each. Where two guards stand behind each other, so
that no test can see that one alone is gone, `also` takes out the other one with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CORE: Final = "streams/intake/core.py"
STORE: Final = "connectors/postgres/intake_store.py"
EMBED: Final = "connectors/postgres/embed_store.py"
SINK: Final = "connectors/postgres/queries/sink.sql"
SWEEP: Final = "connectors/postgres/queries/sweep.sql"
FRESHNESS: Final = "connectors/postgres/queries/freshness.sql"
GENERATIONS: Final = "connectors/postgres/queries/generations.sql"
ROUNDS: Final = "streams/freshness/rounds.py"
GAPS: Final = "streams/gaps.py"
ENVELOPE: Final = "schemas/envelope.py"
RECONCILED: Final = "streams/reconcile/core.py"
RECONCILE_SQL: Final = "connectors/postgres/queries/reconcile.sql"


@dataclass(frozen=True, slots=True)
class Guard:
    """One place of one guard. `why`: what it keeps from happening. `histories`: numbers of reference histories.

    `old` stands in `file` exactly once, and `new` in its place takes the guard out; `also` are more of these in the
    file. `tests`: ids of those that must fail then.
    """

    name: str
    why: str
    histories: tuple[int, ...]
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()

    @property
    def changes(self) -> tuple[tuple[str, str], ...]:
        return ((self.old, self.new), *self.also)

    @property
    def needs_postgres(self) -> bool:
        return any("/contracts/" in test for test in self.tests)


def unit(file: str, *names: str) -> tuple[str, ...]:
    """Ids of unit tests of one module."""
    return tuple(f"tests/unit/test_{file}.py::test_{name}" for name in names)


def contract(file: str, *names: str) -> tuple[str, ...]:
    """Ids of contract tests of one module; those of both stores are run on Postgres."""
    return tuple(f"tests/contracts/test_{file}.py::test_{name}" for name in names)


VERSION: Final = (
    Guard(
        "version: in the decision",
        "an older change, or one that was consumed again, overwrites a newer one",
        (3, 11),
        CORE,
        "if state is not None and change.version <= state.version:",
        "if False:",
        unit("decide", "an_older_offset_after_a_newer_one_changes_nothing"),
    ),
    Guard(
        "version: in the upsert",
        "a slow owner's transaction overwrites what another one has written since it read",
        (11, 15),
        SINK,
        "\n WHERE (r._lineage, r._offset) < (excluded._lineage, excluded._offset)",
        "",
        contract("store", "an_older_version_is_a_conflict_and_changes_nothing[postgres18]"),
    ),
    Guard(
        "version: a refused row ends the transaction",
        "the rest of a batch commits, and the position moves past a change that was not written",
        (15,),
        STORE,
        "records.rowcount != len(plan.writes)",
        "False",
        contract("store", "an_older_version_is_a_conflict_and_changes_nothing[postgres18]"),
    ),
    Guard(
        "version: of what cannot be decoded",
        "an old broken record becomes a dead letter each time the topic is read again",
        (),
        CORE,
        "if stored is not None and event.version <= stored.version:",
        "if False:",
        unit("decide", "a_dead_letter_of_an_older_version_is_a_duplicate"),
    ),
    Guard(
        "version: the lineage goes before lsn and sequence",
        "after a restore of the source its new, lower positions look like replays and are dropped",
        (10,),
        CORE,
        "state.version.lineage != change.version.lineage or change.origin.snapshot",
        "change.origin.snapshot",
        unit("decide", "h10_lower_positions_of_a_restored_source_are_no_replays"),
    ),
)

FENCE: Final = (
    Guard(
        "fence: in the decision",
        "a row from before a truncate comes after it from another partition, and stays",
        (6,),
        CORE,
        "if fence is not None and is_below(fence, change.version.lineage, change.origin.fence_lsn):",
        "if False:",
        unit("decide", "h6_older_rows_of_other_partitions_after_a_truncate"),
    ),
    Guard(
        "fence: rows without an lsn are below it",
        "rows of a first load outlive every truncate",
        (8,),
        CORE,
        "return fence_lsn is None or fence_lsn < fence.lsn",
        "return fence_lsn is not None and fence_lsn < fence.lsn",
        unit("decide", "h8_snapshot_rows_are_fenced_by_their_sequence"),
    ),
    Guard(
        "fence: snapshot rows have that of their sequence",
        "rows that were read after the truncate are dropped with those from before it",
        (8,),
        "schemas/change.py",
        "return self.lsn if self.lsn is not None else self.sequence_lsn",
        "return self.lsn",
        unit("decide", "h8_snapshot_rows_are_fenced_by_their_sequence"),
    ),
    Guard(
        "fence: rows of the same batch",
        "what was inserted and truncated within one batch stays",
        (6,),
        CORE,
        "self.keys[key] = _Folded(None, None, spoilt=folded.spoilt)",
        "pass",
        unit("decide", "insert_then_truncate_in_one_transaction"),
    ),
    Guard(
        "fence: text from before it is no reason to keep vectors",
        "a row from after a truncate is taken for unchanged, and its vectors went with the truncate",
        (6,),
        CORE,
        "folded.stored = None  # its vectors go, also where a row of after the truncate came first",
        "pass",
        unit("decide", "a_row_of_after_a_truncate_that_comes_before_it_is_embedded_anew"),
    ),
    Guard(
        "fence: it only rises",
        "a truncate that is sent again lowers the fence of a later one",
        (3, 6),
        CORE,
        "(fence.lineage, fence.lsn) <= (self.fence.lineage, self.fence.lsn)",
        "False",
        unit("decide", "a_truncate_sent_again_is_a_duplicate"),
    ),
    Guard(
        "fence: it is stored",
        "the next transaction does not know of the truncate",
        (6, 7),
        SINK,
        "SET fence_lineage = %(lineage)s, fence_lsn = %(lsn)s,",
        "SET fence_lineage = fence_lineage, fence_lsn = fence_lsn,",
        contract("store", "a_fence_of_a_new_lineage_removes_all_of_the_old[postgres18]"),
    ),
    Guard(
        "fence: stored rows without an lsn",
        "rows of a first load outlive every truncate",
        (8,),
        SINK,
        "(_fence_lsn IS NULL OR _fence_lsn < %(lsn)s)",
        "_fence_lsn < %(lsn)s",
        contract("store", "a_fence_removes_what_is_below_it_with_all_that_belongs_to_it[postgres18]"),
    ),
    Guard(
        "fence: stored rows of older lineages",
        "what an ended lineage has brought outlives a truncate",
        (6, 10),
        SINK,
        "WHERE _lineage < %(lineage)s OR (_lineage = %(lineage)s AND (",
        "WHERE (_lineage = %(lineage)s AND (",
        contract("store", "a_fence_of_a_new_lineage_removes_all_of_the_old[postgres18]"),
    ),
    Guard(
        "fence: a load that it falls into begins anew",
        "rows that were read before the truncate are emitted after it, above its fence",
        (8,),
        SINK,
        "load_state = CASE WHEN c.loaded THEN load_state ELSE 'incomplete' END,",
        "load_state = load_state,",
        contract("races", "h8_a_truncate_spoils_only_a_load_that_it_falls_into[loading-None-incomplete]"),
    ),
)

REPLAY: Final = (
    Guard(
        "replay check",
        "after a crash of Connect keys go back through every state since its last flush",
        (3,),
        CORE,
        "return sent[0] <= stored[0] and sent[1] <= stored[1]",
        "return False",
        unit("decide", "h3_the_connector_sends_again"),
    ),
    Guard(
        "replay check: not by lsn alone",
        "the insert of a transaction that committed later, below the lsn of a delete, is lost",
        (1,),
        CORE,
        "return sent[0] <= stored[0] and sent[1] <= stored[1]",
        "return sent[1] <= stored[1]",
        unit("decide", "h1_a_lower_lsn_that_was_committed_later_wins"),
    ),
    Guard(
        "replay check: not by the commit before alone",
        "a new event, seeded with an older commit after a crash, is lost",
        (4,),
        CORE,
        "return sent[0] <= stored[0] and sent[1] <= stored[1]",
        "return sent[0] <= stored[0]",
        unit("decide", "h4_a_new_event_seeded_with_an_old_commit_is_no_replay"),
    ),
    Guard(
        "replay check: a snapshot row clears nothing",
        "after a re-read the events that it answers are accepted when they are sent again",
        (2, 3),
        CORE,
        "        lsn=state.lsn,\n        sequence_last_commit=state.sequence_last_commit,\n",
        "",
        unit("decide", "h2_a_snapshot_row_never_clears_the_stored_pair"),
    ),
    Guard(
        "replay check: a snapshot row keeps the transaction",
        "a replayed half of a shift deletes the row that its re-read has brought",
        (3, 9),
        CORE,
        "        transaction_id=state.transaction_id,\n        committed_at=state.committed_at,\n",
        "        committed_at=state.committed_at,\n",
        unit("decide", "h9_a_replayed_shift_does_not_delete_what_the_re_read_brought"),
    ),
)

SNAPSHOT_ROW: Final = (
    Guard(
        "snapshot row",
        "a row that was read before a change, and comes after it, takes it back",
        (5,),
        CORE,
        "if is_overtaken_snapshot_row(state, change) and not repaired:",
        "if False:",
        unit("decide", "h5_a_snapshot_row_never_overwrites_what_was_streamed", "h5_nor_a_marker"),
    ),
    Guard(
        "snapshot row: of another lineage it wins",
        "a re-snapshot after a rebuild brings nothing",
        (5, 10),
        CORE,
        "state.streamed and state.version.lineage == change.version.lineage",
        "state.streamed",
        unit("decide", "h5_but_that_of_another_lineage"),
    ),
    Guard(
        "snapshot row: one that was asked for wins",
        "a key in doubt stays in doubt for ever",
        (9,),
        CORE,
        "if is_overtaken_snapshot_row(state, change) and not repaired:",
        "if is_overtaken_snapshot_row(state, change):",
        unit("decide", "h9_the_re_read_is_accepted_once_and_done"),
    ),
    Guard(
        "snapshot row: not over a change of the same batch",
        "a re-read answers an older version, and takes back what came since",
        (5, 9),
        CORE,
        "repaired = change.origin.snapshot and key in self.view.repairs and folded.last is None",
        "repaired = change.origin.snapshot and key in self.view.repairs",
        unit("decide", "h5_a_re_read_that_a_change_in_the_same_batch_has_overtaken"),
    ),
    Guard(
        "snapshot row: only after it was asked for",
        "a row of a load that runs anyway is taken for the answer, and may be older than the doubt",
        (9,),
        SINK,
        "AND r.key = ANY(%(keys)s::text[]) AND r.asked\n",
        "AND r.key = ANY(%(keys)s::text[])\n",
        contract("repairs", "a_row_of_a_load_is_no_answer_to_what_nobody_asked[18]"),
    ),
    Guard(
        "half of a shift",
        "the delete of a shift removes the row that the same statement has just put there",
        (9,),
        CORE,
        "return change.moved_to and not state.deleted and mine is not None and mine == stored",
        "return False",
        unit("decide", "h9_shift_in_one_statement_keeps_the_rows_and_asks_for_them"),
    ),
    Guard(
        "half of a shift: what the source lacks is removed in its version only",
        "a row that came back since the look is removed",
        (9,),
        SINK,
        "AND (_key, _lineage, _offset) IN (SELECT * FROM unnest(%(keys)s::text[], %(lineages)s::int[], "
        "%(offsets)s::bigint[]))\n ORDER BY _key FOR UPDATE",
        "AND _key = ANY(%(keys)s::text[])\n ORDER BY _key FOR UPDATE",
        contract("repairs", "a_record_that_moves_on_after_the_look_is_left_alone[18]"),
    ),
    Guard(
        "half of a shift: its transaction is visible first",
        "a commit that is in the stream and not yet visible is taken for an absent row",
        (5, 9),
        "streams/repairs.py",
        "[each.transaction_id for each in open_keys]",
        "[None for _ in open_keys]",
        contract("repairs", "a_transaction_that_is_not_visible_yet_is_waited_for[18]"),
    ),
)

MARKER: Final = (
    Guard(
        "marker: a delete leaves one",
        "an older change that comes again finds nothing, and the key revives",
        (3, 12),
        CORE,
        "        deleted=deleted,\n        text_hash",
        "        deleted=False,\n        text_hash",
        unit("decide", "h3_a_replay_of_older_changes_of_a_deleted_key_does_not_revive_it"),
    ),
    Guard(
        "marker: it holds no row",
        "the text of a deleted row stays in the sink",
        (),
        CORE,
        "row=None if deleted else change.row,",
        "row=change.row if change.row or state is None else state.row,",
        unit("decide", "a_marker_holds_nothing_of_the_row"),
    ),
    Guard(
        "marker: it is not embedded",
        "an embedding that comes late writes vectors of a deleted row",
        (13,),
        EMBED,
        "alive = {row[0] for row in await records.fetchall() if not row[1]}",
        "alive = {row[0] for row in await records.fetchall()}",
        contract("guards", "h13_a_marker_is_never_embedded"),
    ),
    Guard(
        "marker: it is not claimed",
        "the model is given what a deleted row said",
        (13,),
        SINK,
        "SELECT _key, _row FROM {record} WHERE _key = ANY(%(keys)s::text[]) AND NOT _deleted",
        "SELECT _key, coalesce(_row, '{{}}') FROM {record} WHERE _key = ANY(%(keys)s::text[])",
        contract("guards", "h13_a_marker_is_never_claimed"),
    ),
    Guard(
        "marker: vectors go with the row",
        "a deleted row is still found",
        (13, 14),
        STORE,
        'removed = [write.key for write in plan.writes if write.embed_in(number) == "remove"]',
        "removed: list[str] = []",
        contract("races", "h14_vectors_committed_while_a_delete_waits_are_removed"),
    ),
    Guard(
        "marker: a new generation has none",
        "a generation is filled with rows that were deleted",
        (39,),
        GENERATIONS,
        "WHERE c.name = %(collection)s AND NOT r._deleted",
        "WHERE c.name = %(collection)s",
        contract(
            "generations", "h39_a_new_generation_has_all_rows_in_the_backfill_lane_without_a_commit_time[18]"
        ),
    ),
    Guard(
        "marker: a replay of a dead letter keeps its version",
        "an old insert from a dead letter revives a key that was deleted since",
        (12,),
        "streams/replay.py",
        "offset=letter.version.offset,",
        "offset=letter.version.offset + 1_000_000,",
        contract("dead_letters", "h12_a_deleted_key_is_not_revived[18]"),
    ),
)

LOCK: Final = (
    Guard(
        "advisory lock: shared by intake",
        "a generation is made beside a transaction that does not know it: no pending row, for ever",
        (7, 19),
        STORE,
        '        await connection.execute(SQL[lock], {"collection": request.collection})\n',
        "",
        contract("races", "h19_generations_are_read_under_the_lock"),
    ),
    Guard(
        "advisory lock: alone for a truncate",
        "an upsert that read no fence commits after the truncate has removed what it saw",
        (7,),
        STORE,
        '"lock_collection_alone" if request.exclusive else "lock_collection"',
        '"lock_collection"',
        contract("races", "h7_a_truncate_waits_for_an_upsert_that_saw_no_fence"),
    ),
    Guard(
        "advisory lock: a batch with a truncate asks for it",
        "as above: the store is not told",
        (7,),
        CORE,
        "return any(isinstance(event, Change) and event.operation is Operation.TRUNCATE for event in events)",
        "return False",
        unit("decide", "a_truncate_takes_the_lock_alone"),
    ),
    Guard(
        "advisory lock: shared by embed",
        "vectors are written into a generation that is being switched to or dropped",
        (7, 20),
        EMBED,
        '        await connection.execute(SQL["lock_collection"], at)\n        records =',
        "        records =",
        contract("guards", "an_embedding_is_written_under_the_lock"),
    ),
    Guard(
        "advisory lock: alone for a sweep",
        "a row that is taken in beside a sweep is removed by it, or brought back by it",
        (7, 24),
        "connectors/postgres/sweep.py",
        'self._connection.execute(SINK["lock_collection_alone"], self._scan.parameters)',
        "pass",
        contract("guards", "a_sweep_is_alone_on_the_collection"),
    ),
    Guard(
        "advisory lock: alone for a new lineage",
        "an intake that read the old lineage as the newest commits after the new one has begun",
        (10, 11),
        "connectors/postgres/capture_state.py",
        "            lock_collections(self._connection)\n",
        "",
        contract("sweep", "a_lineage_begins_after_the_intake_that_runs"),
    ),
    Guard(
        "advisory lock: alone for generation commands",
        "an intake transaction that knows only the old generation commits a new key afterwards",
        (19,),
        "connectors/postgres/generations.py",
        'self._connection.execute(SINK["lock_collection_alone"], {"collection": collection})',
        "pass",
        contract("generations", "h19_a_key_that_is_being_taken_in_while_a_generation_is_made_is_in_it"),
    ),
    Guard(
        "advisory lock: generations are read under it",
        "an intake feeds the generations that there were before it waited",
        (19,),
        STORE,
        "            await connection.execute(SQL[name], {**common, **parameters})\n",
        '            more = {"generations": [1]} if "generations" in parameters else {}\n'
        "            await connection.execute(SQL[name], {**common, **parameters, **more})\n",
        contract("races", "h19_generations_are_read_under_the_lock"),
    ),
    Guard(
        "lock order: who waits for a pending row holds no other",
        "a worker that frees its leases and an intake wait for each other",
        (20,),
        SINK,
        "WHERE slot = %(slot)s AND token IS NOT NULL FOR UPDATE SKIP LOCKED",
        "WHERE slot = %(slot)s AND token IS NOT NULL FOR UPDATE",
        contract("races", "h20_a_release_that_waits_holds_nothing"),
    ),
    Guard(
        "lock order: a claim waits for nobody",
        "an embedder stands still behind an intake, or they wait for each other",
        (20,),
        SINK,
        "     WHERE lane = 'live' AND deadline > statement_timestamp() AND available_at <= clock_timestamp()\n"
        "       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)s::text[], %(generations)s::int[]))\n"
        "       AND (token IS NULL OR lease_until < clock_timestamp())\n"
        "     ORDER BY deadline LIMIT %(limit)s FOR UPDATE SKIP LOCKED",
        "     WHERE lane = 'live' AND deadline > statement_timestamp() AND available_at <= clock_timestamp()\n"
        "       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)s::text[], %(generations)s::int[]))\n"
        "       AND (token IS NULL OR lease_until < clock_timestamp())\n"
        "     ORDER BY deadline LIMIT %(limit)s FOR UPDATE",
        contract("races", "a_claim_waits_for_nobody"),
    ),
    Guard(
        "lock order: records before pending rows",
        "an embedding and an intake of the same key wait for each other",
        (20,),
        EMBED,
        '        records = await connection.execute(SQL.filled("lock_records_to_embed", record=record), keys)\n'
        '        locked = await connection.execute(SQL["lock_claims"], {**at, **keys})\n',
        '        locked = await connection.execute(SQL["lock_claims"], {**at, **keys})\n'
        '        records = await connection.execute(SQL.filled("lock_records_to_embed", record=record), keys)\n',
        contract("guards", "h20_an_embedding_that_waits_for_a_record_holds_no_pending_row"),
    ),
    Guard(
        "two statements: the second sees what the locks let in",
        "vectors that are committed while a delete waits outlive it",
        (14, 15),
        STORE,
        "    async with connection.pipeline():\n        lock = ",
        '    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")\n'
        "    async with connection.pipeline():\n        lock = ",
        contract("races", "h14_vectors_committed_while_a_delete_waits_are_removed"),
    ),
    Guard(
        "fresh snapshot: records are compared after they are locked",
        "two owners of a partition both find the text unchanged, and nothing is pending",
        (15,),
        SINK,
        "FROM {record} WHERE _key = ANY(%(keys)s::text[]) ORDER BY _key FOR UPDATE",
        "FROM {record} WHERE _key = ANY(%(keys)s::text[])",
        contract("races", "h15_the_comparison_is_made_after_the_lock"),
    ),
    Guard(
        "unchanged: compared with the record, not with what is embedded",
        "a text that changes there and back while it is claimed is left as what was between",
        (16,),
        CORE,
        'return "keep" if digest in known else "pending" if text.strip() else "remove"',
        'return "keep" if known else "pending" if text.strip() else "remove"',
        unit("decide", "h16_there_and_back_while_claimed_is_a_change"),
    ),
)

LEASE: Final = (
    Guard(
        "lease token: at the write",
        "a late embedder writes what was deleted, or replaced, since it claimed",
        (13,),
        SINK,
        "ON p.key = u.key AND p.token = u.token\n",
        "ON p.key = u.key\n",
        contract(
            "store",
            "h13_deleted_and_inserted_again[postgres18]",
        ),
    ),
    Guard(
        "lease token: pending rows go with a delete",
        "a late embedder finds its row, and writes what was deleted",
        (13,),
        "connectors/postgres/intake_writes.py",
        '        yield "remove_pending_of", {"keys": list(keys), "generations": alike}\n',
        "        pass\n",
        contract("store", "h13_text_became_empty[postgres18]"),
    ),
    Guard(
        "lease token: a claim that failed is given back by it",
        "the failure of a lease that has ended counts against another's",
        (13,),
        SINK,
        "WHERE p.collection = %(collection)s AND p.generation = %(generation)s AND p.key = u.key AND p.token = u.token",
        "WHERE p.collection = %(collection)s AND p.generation = %(generation)s AND p.key = u.key",
        contract("store", "a_failure_without_its_lease_changes_nothing[postgres18]"),
    ),
    Guard(
        "lease token: only the claimed text is dead-lettered",
        "a text that has changed since is given up with the old one",
        (13,),
        SINK,
        'AND token = %(token)s::uuid\n   AND (lineage, "offset") = (%(lineage)s, %(offset)s)',
        "AND token = %(token)s::uuid",
        contract("store", "a_hopeless_text_that_has_changed_meanwhile_is_no_dead_letter[postgres18]"),
    ),
    Guard(
        "lease: it holds in time",
        "two embedders work on the same text",
        (13,),
        SINK,
        "deadline > statement_timestamp() AND available_at <= clock_timestamp()\n"
        "       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)s::text[], %(generations)s::int[]))\n"
        "       AND (token IS NULL OR lease_until < clock_timestamp())",
        "deadline > statement_timestamp() AND available_at <= clock_timestamp()\n"
        "       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)s::text[], %(generations)s::int[]))",
        contract("guards", "a_lease_holds_in_every_lane[timely]"),
    ),
    Guard(
        "lease: it holds when late",
        "as above, for what is late already",
        (13,),
        SINK,
        "deadline <= statement_timestamp() AND available_at <= clock_timestamp()\n"
        "       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)s::text[], %(generations)s::int[]))\n"
        "       AND (token IS NULL OR lease_until < clock_timestamp())",
        "deadline <= statement_timestamp() AND available_at <= clock_timestamp()\n"
        "       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)s::text[], %(generations)s::int[]))",
        contract("guards", "a_lease_holds_in_every_lane[late]"),
    ),
    Guard(
        "lease: it holds in the backfill lane",
        "as above, for rows of a load",
        (13,),
        SINK,
        "AND available_at <= clock_timestamp() AND (token IS NULL OR lease_until < clock_timestamp())",
        "AND available_at <= clock_timestamp()",
        contract("guards", "a_lease_holds_in_every_lane[backfill]"),
    ),
    Guard(
        "lease: freed when its slot starts",
        "what a killed worker had claimed waits for the end of its lease",
        (),
        "streams/embed/stage.py",
        "released = released or await self._store.release(self._slot) >= 0",
        "released = True",
        unit("embed_stage", "it_frees_its_slots_leases_and_wakes_at_once"),
    ),
    Guard(
        "claimed version: what came since stays pending",
        "a text that changed while it was encoded is never embedded",
        (16, 18),
        EMBED,
        "return WriteOutcome.WRITTEN if same else WriteOutcome.MOVED_ON",
        "return WriteOutcome.WRITTEN",
        contract("store", "h16_a_to_b_to_a_while_claimed[postgres18]"),
    ),
    Guard(
        "kept chunks are read again",
        "a chunk whose vector has vanished since is written without one, or with another's",
        (17,),
        EMBED,
        "if any(chunk.vector is None and chunk.hash not in vectors for chunk in write.chunks):",
        "if False:",
        contract("store", "h17_a_copied_chunk_vanishes[postgres18]"),
    ),
    Guard(
        "kept chunks: known ones are not encoded, new ones are",
        "a fixed canary text proves nothing: the model is never called",
        (33,),
        "schemas/spec.py",
        'template="canary of upwell, number {{ nonce }}"',
        'template="canary of upwell"',
        unit("spec", "h33_the_canary_has_a_text_of_its_own_each_time"),
    ),
)

SINCE: Final = (
    Guard(
        "since: the oldest of a batch",
        "collapsed changes look younger than they are",
        (18,),
        CORE,
        "if self.committed_since is None or committed_at < self.committed_since:",
        "if True:",
        unit("decide", "h18_collapsed_changes_are_pending_since_the_first"),
    ),
    Guard(
        "since: of an unclaimed row it is the oldest",
        "a key that changes all the time never looks late",
        (18,),
        SINK,
        "CASE WHEN p.token IS NULL THEN least(p.pending_since, excluded.pending_since)",
        "CASE WHEN p.token IS NULL THEN excluded.pending_since",
        contract("store", "h18_since_the_first_of_what_waits[postgres18]"),
    ),
    Guard(
        "since: next_since is the first after the claim",
        "after the claimed text is written what waits looks younger than it is",
        (18,),
        SINK,
        "next_since = CASE WHEN p.token IS NULL THEN NULL ELSE least(p.next_since, excluded.pending_since) END",
        "next_since = CASE WHEN p.token IS NULL THEN NULL ELSE excluded.pending_since END",
        contract("store", "h18_what_comes_after_the_claim_is_the_next[postgres18]"),
    ),
    Guard(
        "since: it moves up to next_since",
        "a key that changes faster than it embeds looks older and older",
        (18,),
        SINK,
        "pending_since = next_since, next_since = NULL, changes = next_changes, next_changes = 0\n  FROM upwell.collection c",
        "next_since = NULL, changes = next_changes, next_changes = 0\n  FROM upwell.collection c",
        contract("store", "h18_what_comes_after_the_claim_is_the_next[postgres18]"),
    ),
    Guard(
        "since: never of a snapshot row",
        "a first load looks like changes that are hours late",
        (18, 37),
        CORE,
        "        if not change.origin.snapshot:\n            self.unreflected(change.origin.committed_at)",
        "        self.unreflected(change.origin.committed_at)",
        unit("decide", "h18_a_snapshot_row_never_counts_as_late"),
    ),
    Guard(
        "since: a snapshot row demotes nothing",
        "a live change waits behind a load",
        (37,),
        SINK,
        "lane = CASE WHEN p.lane = 'live' THEN 'live' ELSE excluded.lane END,",
        "lane = excluded.lane,",
        contract("store", "a_snapshot_row_has_no_commit_time_and_demotes_nothing[postgres18]"),
    ),
)

POSITION: Final = (
    Guard(
        "position: compared before anything is written",
        "a worker under which the sink was restored goes on, and skips what lies between",
        (21,),
        STORE,
        "        if stored.get(at) != expected:\n",
        "        if False:\n",
        contract("guards", "h21_nothing_is_decided_for_an_owner_whose_position_is_another"),
    ),
    Guard(
        "position: compared and set",
        "two owners of a partition both move its position: what one has not taken in is skipped",
        (21,),
        SINK,
        "WHERE p.topic = u.topic AND p.partition = u.partition AND p.next_offset = u.expected",
        "WHERE p.topic = u.topic AND p.partition = u.partition",
        contract("guards", "h21_of_two_owners_at_once_one_writes_nothing"),
        also=(("ORDER BY topic, partition FOR UPDATE", "ORDER BY topic, partition"),),
    ),
    Guard(
        "position: the first owner's is new",
        "two first owners of a partition both begin it",
        (21,),
        SINK,
        "SELECT * FROM unnest(%(topics)s::text[], %(partitions)s::int[], %(next)s::bigint[])\nON CONFLICT DO NOTHING",
        "SELECT * FROM unnest(%(topics)s::text[], %(partitions)s::int[], %(next)s::bigint[])\n"
        "ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
        contract("guards", "h21_of_two_first_owners_at_once_one_writes_nothing"),
    ),
    Guard(
        "position: one that did not move ends the transaction",
        "an owner that lost the race commits its batch",
        (21,),
        STORE,
        "        if cursor.rowcount != wanted:\n",
        "        if False:\n",
        contract("guards", "h21_of_two_first_owners_at_once_one_writes_nothing"),
    ),
    Guard(
        "position: a conflict is not retried",
        "the retry commits after a restore, and skips what lies between",
        (21,),
        "schemas/errors.py",
        "class PositionConflict(Halt):",
        "class PositionConflict(Conflict):",
        unit("intake_stage", "h21_another_position_is_not_tried_again"),
    ),
    Guard(
        "position: what this owner last wrote",
        "the retry after a restore reads the position anew, and skips what lies between",
        (21,),
        "streams/intake/stage.py",
        "        plan, visible_at = await self._persist(attempt, pairs[0][0])\n",
        "        self._positions.update(await self._store.positions([pairs[0][0].at.topic]))\n"
        "        plan, visible_at = await self._persist(attempt, pairs[0][0])\n",
        unit("intake_stage", "another_owner_ends_the_worker_and_nothing_is_written"),
    ),
    Guard(
        "seek override: Faust asks our consumer",
        "after a rebalance Faust goes on at the group's offsets, whatever the sink has",
        (21, 22),
        "streams/intake/transport.py",
        "async def seek_to_committed(self)",
        "async def seek_to_positions(self)",
        unit("transport", "h22_where_faust_seeks_is_the_sinks_position"),
    ),
    Guard(
        "seek override: it really seeks",
        "Faust takes the sink's positions for read, and reads elsewhere",
        (22,),
        "streams/intake/transport.py",
        "        await self._thread.seek_wait(seek)\n",
        "",
        unit("transport", "h22_where_faust_seeks_is_the_sinks_position"),
    ),
    Guard(
        "seek override: it is Faust's consumer",
        "the app runs with the stock consumer",
        (22,),
        "streams/intake/app.py",
        "return PositionedTransport(self.conf.broker_consumer, self)",
        "return super()._new_transport()",
        unit("transport", "h22_the_app_has_our_consumer"),
    ),
    Guard(
        "seek override: the sink's position",
        "every start takes in the whole topic again, and a worker lags for hours",
        (21,),
        "streams/intake/transport.py",
        "offsets[at] = log_start if position is None else position",
        "offsets[at] = log_start",
        unit("intake_stage", "where_to_begin"),
    ),
    Guard(
        "acknowledgement after commit",
        "a crash before the commit loses what was acknowledged",
        (21,),
        "streams/intake/agent.py",
        "            await intake.take_in([raw_message(event) for event in batch])\n"
        "            for event in batch:\n"
        "                await unacknowledged.ack(event)\n",
        "            for event in batch:\n"
        "                await unacknowledged.ack(event)\n"
        "            await intake.take_in([raw_message(event) for event in batch])\n",
        unit("agent", "nothing_is_acknowledged_before_its_commit"),
    ),
    Guard(
        "acknowledgement: not by Faust",
        "Faust acknowledges what an exception has interrupted",
        (21,),
        "streams/intake/agent.py",
        "unacknowledged = stream.noack()",
        "unacknowledged = stream",
        unit("agent", "what_fails_ends_the_agent_unacknowledged"),
    ),
)

SWEEPING: Final = (
    Guard(
        "sweep: what came after the scan began",
        "rows that the scan has brought are removed",
        (24,),
        SWEEP,
        "\n    AND r._offset < coalesce((%(starts)s::jsonb ->> r._partition::text)::bigint, 0)",
        "",
        contract("sweep", "within_a_lineage_only_snapshot_rows_from_before_the_scan_are_unseen"),
    ),
    Guard(
        "sweep: what was streamed",
        "a row whose scanned copy was overtaken is removed",
        (5, 24),
        SWEEP,
        "AND NOT r._streamed\n",
        "\n",
        contract("sweep", "within_a_lineage_only_snapshot_rows_from_before_the_scan_are_unseen"),
    ),
    Guard(
        "sweep: a key with an open dead letter",
        "a row that could not be taken in looks as if the source did not have it",
        (29,),
        SWEEP,
        "AND (d.key = r._key OR d.key IS NULL)",
        "AND d.key IS NULL",
        contract("sweep", "h29_a_key_with_an_open_dead_letter_is_left_alone"),
    ),
    Guard(
        "sweep: dead letters of unknown keys",
        "the same, where its key could not be read either",
        (29,),
        SWEEP,
        "AND (d.key = r._key OR d.key IS NULL)",
        "AND d.key = r._key",
        contract("sweep", "h29_nothing_is_swept_while_a_dead_letter_may_be_any_keys"),
    ),
    Guard(
        "sweep: dead letters of unknown keys are said",
        "a load never becomes complete, and nobody knows why; or it does, with ghosts",
        (29,),
        "streams/completion.py",
        "        if letters:\n",
        "        if False:\n",
        unit("loads", "complete_needs_everything_taken_in_swept_and_embedded"),
    ),
    Guard(
        "sweep: of the newest lineage",
        "the scan of an ended lineage removes what the next one has brought",
        (10, 24),
        SWEEP,
        "\n   AND %(lineage)s = (SELECT coalesce(max(number), %(lineage)s) FROM upwell.lineage)",
        "",
        contract("sweep", "a_scan_of_an_ended_lineage_sweeps_nothing"),
    ),
    Guard(
        "sweep: after all is taken in",
        "rows of the scan that are still in Kafka are removed",
        (24, 30),
        "streams/completion.py",
        "(self._read, self._settle, self._take_in, self._sweep, self._embed)",
        "(self._read, self._settle, self._sweep, self._embed)",
        unit("loads", "complete_needs_everything_taken_in_swept_and_embedded"),
    ),
    Guard(
        "sweep: after the connector has settled",
        "rows that Kafka has not confirmed are removed as if they were not there",
        (30,),
        "streams/completion.py",
        "if stored is None or int(stored) <= int(load.detail",
        "if False and int(stored) <= int(load.detail",
        unit("loads", "complete_needs_everything_taken_in_swept_and_embedded"),
    ),
    Guard(
        "scan: it has succeeded",
        "a scan that failed is taken for complete, and the rest of the table is swept",
        (24,),
        "streams/loads.py",
        "elif notification.succeeded:",
        "elif notification.ended:",
        unit("loads", "a_scan_that_failed_is_asked_for_again_and_at_last_given_up"),
    ),
    Guard(
        "scan: completed is not succeeded",
        "as above, where the notification is read",
        (24,),
        "connectors/debezium/notifications.py",
        "return self.ended and self.status in SCANNED",
        "return self.ended",
        unit("notifications", "completed_is_not_succeeded"),
    ),
    Guard(
        "scan: older transactions first",
        "rows of a transaction that began before the table was published are in no event",
        (25,),
        "streams/loads.py",
        "        self.wait_settled([self.tables[name] for name in wanted])\n",
        "",
        unit("loads", "older_transactions_first_then_the_state_then_the_signal"),
    ),
    Guard(
        "scan: which transactions are older",
        "as above: a transaction that is still open is not seen",
        (25,),
        "connectors/postgres/queries/source.sql",
        "AND (after_xid IS NULL OR after_xid >= pg_snapshot_xmin(pg_current_snapshot()))",
        "AND after_xid IS NULL",
        contract("guards", "h25_a_table_is_unsettled_while_an_older_transaction_is_open[18]"),
    ),
    Guard(
        "scan: a truncate within it",
        "rows that were read before the truncate are emitted after it, above its fence",
        (8,),
        "connectors/postgres/capture_state.py",
        'return int(self.detail["asked_lsn"]) < self.fence_lsn <= int(self.detail["scanned_lsn"])',
        "return False",
        unit("loads", "a_truncate_during_the_scan_keeps_a_collection_incomplete"),
    ),
)

GAP: Final = (
    Guard(
        "GAP: slot lost",
        "the connector goes on behind a hole",
        (28,),
        GAPS,
        'if found["wal_status"] == "lost":',
        "if False:",
        unit("gaps", "what_is_a_gap"),
    ),
    Guard(
        "GAP: slot gone, nothing stored",
        "a table that was read is never followed",
        (28,),
        GAPS,
        'if not found["there"] and begun:',
        "if False:",
        unit("gaps", "what_is_a_gap"),
    ),
    Guard(
        "GAP: slot gone, offset stored",
        "the connector FAILs, and every restart fails again",
        (28,),
        GAPS,
        'if not found["there"]:\n            return f"slot {naming.slot} is gone, but',
        'if False:\n            return f"slot {naming.slot} is gone, but',
        unit("gaps", "what_is_a_gap"),
    ),
    Guard(
        "GAP: source restored behind the stored position",
        "commits below the stored position are skipped in silence",
        (26,),
        GAPS,
        'if found["wal_end"] < int(stored.get("lsn") or 0):',
        "if False:",
        unit("gaps", "what_is_a_gap"),
    ),
    Guard(
        "GAP: slot moved past the stored position",
        "what lies between is in no event",
        (27,),
        GAPS,
        'return commit is not None and found["confirmed"] is not None and bool(found["confirmed"] > int(commit))',
        "return False",
        unit("gaps", "what_is_a_gap"),
    ),
    Guard(
        "GAP: a slot may be ahead for three flushes",
        "a busy source cries wolf",
        (32,),
        GAPS,
        "if not moved or time.monotonic() > deadline:",
        "if True:",
        unit("gaps", "h32_a_slot_ahead_of_what_is_stored_is_normal_for_a_while"),
    ),
    Guard(
        "GAP: a canary's number is missing",
        "the stream has a hole, and everything looks well",
        (27,),
        "streams/freshness/probes.py",
        "event.offset == last[0] and event.number > last[1] + 1:",
        "False:",
        unit("evaluation", "a_number_that_is_missing_is_a_lost_change"),
    ),
    Guard(
        "GAP: what the topic has forgotten is not missing",
        "a monitor that was away for longer than the retention cries wolf",
        (27,),
        "streams/freshness/probes.py",
        "event.offset == last[0] and event.number > last[1] + 1:",
        "event.number > last[1] + 1:",
        unit("evaluation", "what_the_topic_does_not_hold_any_more_is_not_missing"),
    ),
    Guard(
        "GAP: the log starts above the position, at the start",
        "the consumer jumps to where the log begins, in silence",
        (23,),
        "streams/intake/transport.py",
        "if position is not None and log_start > position:",
        "if False:",
        unit("intake_stage", "h23_a_log_that_starts_above_the_position_is_a_gap"),
    ),
    Guard(
        "GAP: the log starts above the position, in the verdict",
        "a table whose changes were removed before they were read looks late only",
        (23,),
        ROUNDS,
        "position is not None and position < start:",
        "False:",
        unit("rounds", "a_log_start_above_the_position_is_loss"),
    ),
    Guard(
        "GAP: it goes before every figure",
        "a line with a hole looks FRESH",
        (23, 26, 27, 28),
        "streams/freshness/verdict.py",
        "    gap = pipeline.gap or standing.lost\n    if gap:\n",
        "    gap = pipeline.gap or standing.lost\n    if False:\n",
        unit("verdict", "a_gap_whatever_the_lag_says"),
    ),
    Guard(
        "GAP: it is remembered",
        "a monitor that restarts forgets a number that was missing",
        (27,),
        "streams/freshness/evaluation.py",
        "gaps = [sights.gap, sights.missing, *sink.gaps]",
        "gaps = [sights.gap, sights.missing]",
        unit("evaluation", "a_missing_canary_and_what_another_monitor_has_found_are_gaps"),
    ),
    Guard(
        "GAP: no start over it",
        "`connector apply` starts behind a hole, and hides it",
        (26, 27, 28),
        "streams/capture.py",
        "        if gap:\n            raise GapFound",
        "        if False:\n            raise GapFound",
        unit("topics", "h28_nothing_is_started_over_a_gap"),
    ),
)

LINEAGE: Final = (
    Guard(
        "lineage: intake of an ended one",
        "a worker that has not noticed a rebuild writes changes of before it",
        (10, 11),
        STORE,
        "    if request.lineage < row[5]:\n",
        "    if False:\n",
        contract("sweep", "nothing_of_an_ended_lineage_is_taken_in[postgres18]"),
    ),
    Guard(
        "topic identity: at the start of a worker",
        "offsets of a topic that was made again, or repartitioned, are compared with those of the old one",
        (11,),
        "streams/app.py",
        "    if found == recorded:\n        return\n",
        "    return\n",
        unit("topics", "h11_a_worker_reads_only_the_topic_that_was_recorded"),
    ),
    Guard(
        "topic identity: made again",
        "as above, in `connector apply`",
        (11,),
        "streams/capture.py",
        "if now.topic_id != then.topic_id:",
        "if False:",
        unit("loads", "topics_must_be_those_that_were_created"),
    ),
    Guard(
        "topic identity: repartitioned",
        "an old event of a key in its old partition comes after its new one",
        (11,),
        "streams/capture.py",
        "if now.partitions != then.partitions:",
        "if False:",
        unit("loads", "topics_must_be_those_that_were_created"),
    ),
    Guard(
        "topic identity: gone",
        "as above",
        (11,),
        "streams/capture.py",
        "        if now is None:\n",
        "        if now is None:\n            continue\n        if False:\n",
        unit("loads", "topics_must_be_those_that_were_created"),
    ),
)

PLACEHOLDER: Final = (
    Guard(
        "placeholder: it stands for what was not sent",
        "the placeholder is stored, and embedded, as the text of a column",
        (),
        ENVELOPE,
        "if (suspicious or isinstance(value, list)) and self._placeholder.stands_for(value)",
        "if False",
        unit("envelope", "unavailable_columns_are_named_and_left_out"),
    ),
    Guard(
        "placeholder: within a value",
        "a value that contains the placeholder is stored",
        (),
        ENVELOPE,
        "                if self._placeholder.is_within(value):\n",
        "                if False:\n",
        unit("envelope", "a_placeholder_within_a_value_blocks"),
    ),
    Guard(
        "placeholder: in a text",
        "a vector is made of the placeholder",
        (),
        ENVELOPE,
        "        if self._placeholder.is_within(text):\n",
        "        if False:\n",
        unit("envelope", "a_stored_placeholder_never_becomes_text"),
    ),
    Guard(
        "placeholder: a column that is not stored",
        "a text without one of its columns is embedded as if it were whole",
        (),
        ENVELOPE,
        "        if lacking:\n",
        "        if False:\n",
        unit("envelope", "a_needed_column_that_is_not_stored_blocks"),
    ),
    Guard(
        "placeholder: arrays, bytes and JSON spell it otherwise",
        "the placeholder is stored in one of its other forms",
        (),
        "schemas/placeholder.py",
        "            self._quoted,\n            as_numbers,\n            [name_based],\n            {text: text},\n",
        "",
        unit("envelope", "unavailable_columns_are_named_and_left_out"),
    ),
    Guard(
        "vectors: NaN, infinite and zero ones",
        "a vector that no search finds, or that every search finds, is stored",
        (),
        "connectors/encoder/batches.py",
        "        if unusable.size:\n",
        "        if False:\n",
        unit("batches", "vectors_that_say_nothing_are_refused"),
    ),
)

WATERMARK: Final = (
    Guard(
        "watermark: everything is taken in",
        "it claims what still waits in Kafka",
        (),
        ROUNDS,
        "return bool(partitions) and not behind(ends, reflected)",
        "return bool(partitions)",
        unit("rounds", "a_partition_without_a_position_begins_at_its_log_start"),
    ),
    Guard(
        "watermark: an emptied partition is taken in",
        "a healthy table that is never written can never finish a round",
        (36,),
        ROUNDS,
        "reflected.positions.get(at.partition, ends.starts.get(at, 0))",
        "reflected.positions.get(at.partition, 0)",
        unit("rounds", "a_partition_without_a_position_begins_at_its_log_start"),
    ),
    Guard(
        "watermark: a topic that is not there is not taken in",
        "a table whose topic is gone looks fresh",
        (36,),
        ROUNDS,
        "return bool(partitions) and not behind(ends, reflected)",
        "return not behind(ends, reflected)",
        unit("rounds", "a_topic_that_was_not_asked_for_completes_nothing"),
    ),
    Guard(
        "watermark: the connector has settled",
        "the canary is in Kafka, an earlier row of another partition is not",
        (30,),
        ROUNDS,
        "return [each for each in self.waiting if each.settled and each.ends is None]",
        "return [each for each in self.waiting if each.event_lsn is not None and each.ends is None]",
        unit(
            "rounds", "h30_end_offsets_are_read_only_after_the_connector_has_stored_a_commit_past_the_canary"
        ),
    ),
    Guard(
        "watermark: settled is past the canary's own place",
        "a row carries the commit before its own: what is stored says nothing of it yet",
        (30, 31),
        ROUNDS,
        "if each.event_lsn is not None and each.event_lsn < lsn_commit:",
        "if each.event_lsn is not None and each.event_lsn <= lsn_commit:",
        unit(
            "rounds", "h30_end_offsets_are_read_only_after_the_connector_has_stored_a_commit_past_the_canary"
        ),
    ),
    Guard(
        "watermark: the heartbeat commits again",
        "an idle source's last canary is never stored, and its round never ends",
        (31,),
        "connectors/debezium/config.py",
        '"heartbeat.action.query": HEARTBEAT_QUERY,',
        "",
        unit("connector_config", "h31_the_heartbeat_commits_at_the_source"),
    ),
    Guard(
        "watermark: its own canary is found",
        "a model that is gone looks fresh for as long as nothing is written",
        (33,),
        ROUNDS,
        "each.number > canary or not _taken_in",
        "not _taken_in",
        unit("rounds", "a_round_needs_its_own_canary_to_be_found"),
    ),
    Guard(
        "watermark: the oldest that waits",
        "it claims what is pending, or dead-lettered",
        (38,),
        ROUNDS,
        "return proven if unreflected is None else min(proven, unreflected - TICK)",
        "return proven",
        unit("rounds", "a_finished_round_claims_no_more_than_the_oldest_that_waits"),
    ),
    Guard(
        "watermark: a moment before the round",
        "a commit whose time was taken before its place in the log is claimed",
        (),
        ROUNDS,
        "proven = begun - GUARD",
        "proven = begun",
        unit("evaluation", "a_finished_round_is_a_watermark"),
    ),
    Guard(
        "watermark: held by a dead letter without a time",
        "an undecodable record is forgotten",
        (35,),
        ROUNDS,
        "            if not _held(each.ends, reflected):\n",
        "            if True:\n",
        unit("rounds", "an_undated_dead_letter_holds_the_watermark_where_it_was"),
    ),
    Guard(
        "watermark: dead letters count",
        "a change that could not be taken in is forgotten",
        (38,),
        "connectors/postgres/freshness.py",
        "for at in (self.pending_since, self.letter_since, self.doubted) if at is not None)",
        "for at in (self.pending_since, self.doubted) if at is not None)",
        contract("freshness_store", "what_is_not_reflected"),
    ),
    Guard(
        "watermark: keys in doubt count",
        "a key that is to be read again counts as searchable",
        (9,),
        "connectors/postgres/freshness.py",
        "for at in (self.pending_since, self.letter_since, self.doubted) if at is not None)",
        "for at in (self.pending_since, self.letter_since) if at is not None)",
        contract("freshness_store", "what_is_not_reflected"),
    ),
    Guard(
        "watermark: a newer change closes dead letters",
        "a row that was mended at the source stays STALE until somebody waives it",
        (38,),
        "connectors/postgres/intake_writes.py",
        '"close_dead_letters"',
        '"notify_pending"',
        contract("store", "h38_a_newer_change_closes_older_dead_letters_only[postgres18-mended]"),
    ),
    Guard(
        "watermark: only older dead letters are closed",
        "a dead letter that is newer than the change is forgotten",
        (38,),
        SINK,
        '\n   AND (d.lineage, d."offset") < (u.lineage, u."offset") AND',
        "\n   AND",
        contract("store", "h38_a_newer_change_closes_older_dead_letters_only[postgres18-mended]"),
    ),
    Guard(
        "watermark: one snapshot",
        "a row leaves one table before the other is read, and is in neither",
        (34,),
        "connectors/postgres/freshness.py",
        '            self.connection.execute(SQL["one_snapshot"])\n',
        "",
        contract("guards", "h34_a_row_is_in_one_place_or_the_other"),
    ),
    Guard(
        "watermark: nothing while a table is loaded",
        "rows from before the round are not there yet, and it claims them",
        (37,),
        "streams/freshness/evaluation.py",
        'if done is not None and seen.load_state == "complete":',
        "if done is not None:",
        unit("evaluation", "h37_nothing_is_proven_while_a_table_is_loaded"),
    ),
    Guard(
        "watermark: INCOMPLETE before any figure",
        "a table that is not loaded is FRESH with nothing searchable",
        (37,),
        "streams/freshness/verdict.py",
        'if standing.load_state != "complete":',
        "if False:",
        unit("verdict", "a_first_load_is_incomplete_whatever_the_lag_says"),
    ),
    Guard(
        "watermark: rows of a load wait apart",
        "a first load is STALE for hours, and the budget is gone",
        (37,),
        FRESHNESS,
        "WHERE lane = 'live' AND collection = c.name AND generation = g.number) p ON true\n  LEFT JOIN LATERAL "
        "(SELECT count(*) AS rows, min(committed_at)",
        "WHERE collection = c.name AND generation = g.number) p ON true\n  LEFT JOIN LATERAL "
        "(SELECT count(*) AS rows, min(committed_at)",
        contract("freshness_store", "first_loads_are_counted_apart"),
    ),
    Guard(
        "watermark: of the live generation",
        "what waits in a generation that is being filled holds it back",
        (39,),
        FRESHNESS,
        "WHERE lane = 'live' AND collection = c.name AND generation = g.number) p ON true\n  LEFT JOIN LATERAL "
        "(SELECT count(*) AS rows, min(committed_at)",
        "WHERE collection = c.name) p ON true\n  LEFT JOIN LATERAL (SELECT count(*) AS rows, min(committed_at)",
        contract("freshness_store", "what_waits_in_a_generation_that_is_not_live_is_not_looked_at"),
    ),
    Guard(
        "watermark: a fill has no commit time",
        "it falls back by months when a new generation goes live",
        (39,),
        GENERATIONS,
        '(collection, generation, key, lineage, "offset", lane, deadline, changes, taken_in_at)\n'
        "SELECT c.name, %(number)s, r._key, r._lineage, r._offset, 'backfill',\n"
        "       clock_timestamp() + c.threshold_seconds * interval '1 second', 0, clock_timestamp()",
        '(collection, generation, key, lineage, "offset", lane, deadline, changes, taken_in_at, pending_since)\n'
        "SELECT c.name, %(number)s, r._key, r._lineage, r._offset, 'backfill',\n"
        "       clock_timestamp() + c.threshold_seconds * interval '1 second', 0, clock_timestamp(), r._committed_at",
        contract(
            "generations", "h39_a_new_generation_has_all_rows_in_the_backfill_lane_without_a_commit_time[18]"
        ),
    ),
    Guard(
        "watermark: what a switch takes out of search",
        "what waits in the generation that goes live is claimed",
        (39,),
        "connectors/postgres/generations.py",
        '("retire", "make_live", "swap_lanes", "lower_watermark")',
        '("retire", "make_live", "swap_lanes")',
        contract("freshness_store", "a_switch_takes_back_what_is_not_searchable_any_more"),
    ),
    Guard(
        "watermark: proven of the generation that is live",
        "a round that was looked at before a switch claims what it took out of search",
        (39,),
        FRESHNESS,
        "AND coalesce(w.generation, u.generation) = u.generation\n",
        "\n",
        contract("freshness_store", "a_switch_takes_back_what_is_not_searchable_any_more"),
    ),
    Guard(
        "watermark: it only grows",
        "a slow monitor takes back what another has proven",
        (),
        FRESHNESS,
        "AND (w.watermark IS NULL OR w.watermark < u.watermark)",
        "",
        contract("freshness_store", "a_watermark_only_grows_within_a_lineage"),
    ),
    Guard(
        "watermark: a change from before it is a violation",
        "nobody hears that it was wrong",
        (),
        CORE,
        "            self.outcomes[place] in ACCEPTED and committed_at <= published\n",
        "            False\n",
        contract("freshness_store", "a_change_from_before_the_published_watermark_is_counted[postgres18]"),
    ),
)

RECONCILE: Final = (
    Guard(
        "reconcile: a round before it is certain",
        "what is in flight is taken for a difference",
        (),
        RECONCILED,
        "        settle()\n        now = sink.read(list(before))\n",
        "        now = sink.read(list(before))\n",
        unit("reconcile", "the_source_is_read_between_the_two_reads_of_the_sink_and_the_round_after_it"),
    ),
    Guard(
        "reconcile: only a version that has not moved",
        "a key that changes all the time is a difference",
        (),
        RECONCILED,
        "certain = now[key].is_still(stored) and ",
        "certain = ",
        unit("reconcile", "a_version_that_has_moved_is_looked_at_again"),
    ),
    Guard(
        "reconcile: only what the source's snapshot can show",
        "the sink is ahead of a commit that is not visible yet, and its row is taken for a ghost",
        (5,),
        RECONCILED,
        "seen[key].visible and ",
        "",
        unit("reconcile", "a_commit_that_the_source_does_not_show_yet_is_waited_for"),
    ),
    Guard(
        "reconcile: a ghost goes in the proven version alone",
        "a row that has come since is removed",
        (),
        RECONCILE_SQL,
        "   AND (_key, _lineage, _offset) IN (SELECT * FROM unnest(%(keys)s::text[], %(lineages)s::int[], %(offsets)s::bigint[]))\n"
        "   AND NOT EXISTS",
        "   AND _key = ANY(%(keys)s::text[]) AND NOT EXISTS",
        contract("reconcile", "a_ghost_goes_only_in_the_version_that_was_proven[18]"),
    ),
    Guard(
        "reconcile: no ghost of which a dead letter may be",
        "its replay brings back what was removed",
        (29,),
        RECONCILE_SQL,
        "AND (d.key = r._key OR d.key IS NULL) AND d.lineage = r._lineage)",
        "AND false)",
        contract("reconcile", "a_ghost_goes_only_in_the_version_that_was_proven[18]"),
    ),
)

GUARDS: Final[tuple[Guard, ...]] = (
    *VERSION, *FENCE, *REPLAY, *SNAPSHOT_ROW, *MARKER, *LOCK, *LEASE, *SINCE, *POSITION, *SWEEPING, *GAP, *LINEAGE,
    *PLACEHOLDER, *WATERMARK, *RECONCILE,
)  # fmt: skip
