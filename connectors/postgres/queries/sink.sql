-- name: lock_collection
-- Intake and embed share it; truncate, sweep and generation commands (generations.sql) take it alone.
SELECT pg_advisory_xact_lock_shared(hashtext('upwell.collection'), hashtext(%(collection)s))

-- name: lock_collection_alone
SELECT pg_advisory_xact_lock(hashtext('upwell.collection'), hashtext(%(collection)s))

-- name: lock_positions
-- A second owner of a partition waits here, and then fails its compare-and-set.
SELECT topic, partition, next_offset FROM upwell.position
 WHERE (topic, partition) IN (SELECT * FROM unnest(%(topics)b::text[], %(partitions)b::int[]))
 ORDER BY topic, partition FOR UPDATE

-- name: lock_records
-- Its own statement after the locks above, so that its snapshot is fresh (H14, H15).
SELECT _key, _deleted, _text_hash, _lineage, _offset, _streamed, _lsn, _sequence_last_commit, _transaction_id,
       _fence_lsn, _committed_at, CASE WHEN _key = ANY(%(with_rows)b::text[]) THEN _row END AS _row
  FROM {record} WHERE _key = ANY(%(keys)b::text[]) ORDER BY _key FOR UPDATE

-- name: intake_state
-- Fence, the generations that are fed with their templates (those that exist: filling, live and retired), keys whose
-- re-read is still wanted of just the version that is stored, and the newest lineage.
SELECT fence_lineage, fence_lsn,
       ARRAY(SELECT number FROM upwell.generation g WHERE g.collection = c.name AND state <> 'dropped' ORDER BY 1),
       ARRAY(SELECT template FROM upwell.generation g WHERE g.collection = c.name AND state <> 'dropped' ORDER BY number),
       ARRAY(SELECT r.key FROM upwell.repair r JOIN {record} s ON s._key = r.key
              WHERE r.collection = c.name AND r.key = ANY(%(keys)b::text[]) AND r.asked
                AND (s._lineage, s._offset) = (r.lineage, r."offset")),
       (SELECT coalesce(max(number), 0) FROM upwell.lineage),
       (SELECT w.watermark FROM upwell.watermark w
         WHERE w.collection = c.name AND w.lineage = (SELECT max(number) FROM upwell.lineage)),
       (SELECT relnatts FROM pg_class WHERE oid = to_regclass(%(table)s))
  FROM upwell.collection c WHERE name = %(collection)s

-- name: count_violations
-- Changes from before the published watermark: it was wrong.
UPDATE upwell.watermark SET violations = violations + %(violations)s, violated_at = clock_timestamp()
 WHERE collection = %(collection)s

-- name: set_fence
-- A truncate while a load runs: rows read before it may be emitted after it (H8), so the load starts again. `from` stays
-- while the scan may be under way still: its end must not be taken for that of the next one.
UPDATE upwell.collection
   SET fence_lineage = %(lineage)s, fence_lsn = %(lsn)s,
       load_state = CASE WHEN c.loaded THEN load_state ELSE 'incomplete' END,
       load_detail = CASE WHEN c.loaded OR NOT coalesce(load_detail ? 'from', false) THEN load_detail
                          WHEN load_detail ? 'ends' THEN '{{"reason": "truncated"}}'
                          ELSE jsonb_build_object('reason', 'truncated', 'from', load_detail -> 'from') END
  FROM (SELECT load_state = 'complete' OR coalesce((load_detail ->> 'scanned_lsn')::bigint < %(lsn)s, false) AS loaded
          FROM upwell.collection WHERE name = %(collection)s) c
 WHERE name = %(collection)s

-- name: remove_fenced
-- Rows that the truncate removed: of older lineages, and of its own below its lsn.
DELETE FROM {record}
 WHERE _lineage < %(lineage)s OR (_lineage = %(lineage)s AND (_fence_lsn IS NULL OR _fence_lsn < %(lsn)s))
RETURNING _key

-- name: close_fenced_dead_letters
UPDATE upwell.dead_letter
   SET closed_at = clock_timestamp(), closed_by = 'superseded', key_bytes = NULL, value_bytes = NULL, headers = NULL
 WHERE collection = %(collection)s AND closed_at IS NULL AND stage = 'embed' AND key = ANY(%(keys)b::text[])

-- name: upsert_records
-- Guarded once more by version; fewer rows than sent means that somebody else wrote meanwhile.
INSERT INTO {record} AS r
       (_key, _row, _text_hash, _lineage, _partition, _offset, _deleted, _streamed, _lsn, _sequence_last_commit,
        _transaction_id, _fence_lsn, _committed_at, _taken_in_at{columns})
SELECT u.key, u.row, u.text_hash, u.lineage, u.partition, u."offset", u.deleted, u.streamed, u.lsn,
       u.sequence_last_commit, u.transaction_id, u.fence_lsn, u.committed_at, clock_timestamp(){values}
  FROM unnest(%(keys)b::text[], %(rows)b::jsonb[], %(text_hashes)b::bytea[], %(lineages)b::int[],
              %(partitions)b::int[], %(offsets)b::bigint[], %(deleted)b::bool[], %(streamed)b::bool[], %(lsns)b::bigint[],
              %(commits)b::bigint[], %(transactions)b::bigint[], %(fences)b::bigint[], %(committed)b::timestamptz[])
       AS u(key, row, text_hash, lineage, partition, "offset", deleted, streamed, lsn, sequence_last_commit,
            transaction_id, fence_lsn, committed_at)
  LEFT JOIN LATERAL jsonb_to_record(u.row) AS p({types}) ON true
ON CONFLICT (_key) DO UPDATE
   SET _row = excluded._row, _text_hash = excluded._text_hash, _lineage = excluded._lineage,
       _partition = excluded._partition, _offset = excluded._offset, _deleted = excluded._deleted,
       _streamed = excluded._streamed, _lsn = excluded._lsn,
       _sequence_last_commit = excluded._sequence_last_commit, _transaction_id = excluded._transaction_id,
       _fence_lsn = excluded._fence_lsn, _committed_at = excluded._committed_at,
       _taken_in_at = excluded._taken_in_at{assignments}
 WHERE (r._lineage, r._offset) < (excluded._lineage, excluded._offset)

-- name: remove_pending
DELETE FROM upwell.pending WHERE collection = %(collection)s AND key = ANY(%(keys)b::text[])

-- name: remove_pending_of
-- Of generations in whose template the text is empty.
DELETE FROM upwell.pending
 WHERE collection = %(collection)s AND generation = ANY(%(generations)b::int[]) AND key = ANY(%(keys)b::text[])

-- name: remove_embeddings
DELETE FROM {embedding} WHERE key = ANY(%(keys)b::text[])

-- name: upsert_pending
-- `pending_since` is the oldest unreflected commit; of a claimed row it stays, and `next_since` is the first after the claim
-- (H18). A snapshot row has none and never demotes a live one. Only the live generation has a live lane: the others may
-- not hold it up.
INSERT INTO upwell.pending AS p
       (collection, generation, key, lineage, "offset", lane, deadline, pending_since, changes, taken_in_at, available_at)
SELECT %(collection)s, g.number, u.key, u.lineage, u."offset", CASE WHEN g.state = 'live' THEN u.lane ELSE 'backfill' END,
       coalesce(u.since, clock_timestamp()) + c.threshold_seconds * interval '1 second',
       u.since, u.changes, clock_timestamp(), clock_timestamp()
  FROM unnest(%(keys)b::text[], %(lineages)b::int[], %(offsets)b::bigint[], %(lanes)b::text[],
              %(since)b::timestamptz[], %(changes)b::int[]) AS u(key, lineage, "offset", lane, since, changes)
  JOIN upwell.generation g ON g.collection = %(collection)s AND g.number = ANY(%(generations)b::int[])
 CROSS JOIN (SELECT threshold_seconds FROM upwell.collection WHERE name = %(collection)s) AS c
ON CONFLICT (collection, generation, key) DO UPDATE
   SET lineage = excluded.lineage, "offset" = excluded."offset",
       lane = CASE WHEN p.lane = 'live' THEN 'live' ELSE excluded.lane END,
       deadline = CASE WHEN p.lane = excluded.lane THEN least(p.deadline, excluded.deadline)
                       WHEN p.lane = 'live' THEN p.deadline ELSE excluded.deadline END,
       pending_since = CASE WHEN p.token IS NULL THEN least(p.pending_since, excluded.pending_since)
                            ELSE p.pending_since END,
       next_since = CASE WHEN p.token IS NULL THEN NULL ELSE least(p.next_since, excluded.pending_since) END,
       changes = CASE WHEN p.token IS NULL THEN p.changes + excluded.changes ELSE p.changes END,
       next_changes = CASE WHEN p.token IS NULL THEN 0 ELSE p.next_changes + excluded.changes END,
       taken_in_at = CASE WHEN p.token IS NULL THEN p.taken_in_at ELSE excluded.taken_in_at END,
       available_at = excluded.available_at, attempts = 0, last_error = NULL

-- name: close_dead_letters
-- An accepted newer change of the key, a delete included, closes and empties its older dead letters (H38). One of the
-- embed stage stays open while the text is kept in its generation: it is still the one that could not be embedded.
UPDATE upwell.dead_letter d
   SET closed_at = clock_timestamp(), closed_by = 'superseded', key_bytes = NULL, value_bytes = NULL, headers = NULL
  FROM unnest(%(keys)b::text[], %(lineages)b::int[], %(offsets)b::bigint[], %(kept)b::text[])
       AS u(key, lineage, "offset", kept)
 WHERE d.collection = %(collection)s AND d.closed_at IS NULL AND d.key = u.key
   AND (d.lineage, d."offset") < (u.lineage, u."offset") AND (d.stage = 'intake' OR d.generation <> ALL(u.kept::int[]))

-- name: insert_dead_letters
INSERT INTO upwell.dead_letter
       (collection, stage, topic, partition, lineage, "offset", key, key_bytes, value_bytes, headers, error_class, error,
        committed_at)
SELECT %(collection)s, 'intake', * FROM
       unnest(%(topics)b::text[], %(partitions)b::int[], %(lineages)b::int[], %(offsets)b::bigint[], %(keys)b::text[],
              %(key_bytes)b::bytea[], %(value_bytes)b::bytea[], %(headers)b::jsonb[], %(classes)b::text[],
              %(errors)b::text[], %(committed)b::timestamptz[])
ON CONFLICT DO NOTHING

-- name: insert_audit
INSERT INTO upwell.audit
       (collection, action, key, topic, partition, first_offset, last_offset, count, lineage, lsn, transaction_id,
        committed_at, text_hash)
SELECT %(collection)s, * FROM
       unnest(%(actions)b::text[], %(keys)b::text[], %(topics)b::text[], %(partitions)b::int[], %(first)b::bigint[],
              %(last)b::bigint[], %(counts)b::int[], %(lineages)b::int[], %(lsns)b::bigint[],
              %(transactions)b::bigint[], %(committed)b::timestamptz[], %(text_hashes)b::bytea[])

-- name: move_positions
-- Compare-and-set: another value means another owner, or a sink that was restored (H21).
UPDATE upwell.position p SET next_offset = u.next, updated_at = clock_timestamp()
  FROM unnest(%(topics)b::text[], %(partitions)b::int[], %(expected)b::bigint[], %(next)b::bigint[])
       AS u(topic, partition, expected, next)
 WHERE p.topic = u.topic AND p.partition = u.partition AND p.next_offset = u.expected

-- name: first_positions
INSERT INTO upwell.position (topic, partition, next_offset)
SELECT * FROM unnest(%(topics)b::text[], %(partitions)b::int[], %(next)b::bigint[])
ON CONFLICT DO NOTHING

-- name: want_repairs
-- The change that puts a key in doubt is of the same transaction as the record's, or it came when the table was not
-- as the collection needs it; then the record may be a marker that stands for it.
INSERT INTO upwell.repair AS r (collection, key, lineage, "offset", committed_at)
SELECT %(collection)s, _key, _lineage, _offset, _committed_at FROM {record}
 WHERE _key = ANY(%(keys)b::text[])
ON CONFLICT (collection, key) DO UPDATE
   SET lineage = excluded.lineage, "offset" = excluded."offset", asked = false, looked_at = NULL,
       requested_at = clock_timestamp(), committed_at = least(r.committed_at, excluded.committed_at)

-- name: finish_repairs
DELETE FROM upwell.repair WHERE collection = %(collection)s AND key = ANY(%(keys)b::text[])

-- name: notify_pending
SELECT pg_notify('upwell_pending', %(collection)s)

-- name: clock
SELECT clock_timestamp()

-- name: positions
SELECT topic, partition, next_offset FROM upwell.position WHERE topic = ANY(%(topics)b::text[])

-- name: claim
-- Of the live lane what can still be searchable in time, earliest deadline first; what is late already comes after it, the
-- longest overdue first, with `late_share` of the live part at least, so that it moves on too (ADR 0012). `reserved` of the
-- backfill lane at least. What one of the three does not need is the others'. Only of generations that the worker has a
-- recipe for; a big fill without one must not be read through each time, so the backfill lane is looked at by generation.
-- A row that is still leased failed with its worker (ADR 0018).
WITH l AS MATERIALIZED (
    SELECT collection, generation, key, deadline FROM upwell.pending
     WHERE lane = 'live' AND deadline > statement_timestamp() AND available_at <= clock_timestamp()
       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)b::text[], %(generations)b::int[]))
       AND (token IS NULL OR lease_until < clock_timestamp())
     ORDER BY deadline LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), o AS MATERIALIZED (
    SELECT collection, generation, key, deadline FROM upwell.pending
     WHERE lane = 'live' AND deadline <= statement_timestamp() AND available_at <= clock_timestamp()
       AND (collection, generation) IN (SELECT * FROM unnest(%(collections)b::text[], %(generations)b::int[]))
       AND (token IS NULL OR lease_until < clock_timestamp())
     ORDER BY deadline LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), b AS MATERIALIZED (
    SELECT f.* FROM unnest(%(collections)b::text[], %(generations)b::int[]) AS g(collection, generation)
     CROSS JOIN LATERAL (
        SELECT collection, generation, key, deadline FROM upwell.pending
         WHERE lane = 'backfill' AND collection = g.collection AND generation = g.generation
           AND available_at <= clock_timestamp() AND (token IS NULL OR lease_until < clock_timestamp())
         ORDER BY deadline LIMIT %(most_backfill)s FOR UPDATE SKIP LOCKED) AS f
), found AS (
    SELECT (SELECT count(*) FROM l) AS timely, (SELECT count(*) FROM o) AS late, (SELECT count(*) FROM b) AS backfill
), lanes AS (
    SELECT *, least(timely + late, %(limit)s - least(backfill, %(reserved)s)) AS live FROM found
), n AS (
    SELECT live, least(live, greatest(live - timely, least(late, floor(live * %(late_share)s + %(chance)s)::int))) AS late FROM lanes
), picked AS (
    (SELECT * FROM l ORDER BY deadline LIMIT (SELECT live - late FROM n))
    UNION ALL
    (SELECT * FROM o ORDER BY deadline LIMIT (SELECT late FROM n))
    UNION ALL
    (SELECT * FROM b ORDER BY deadline LIMIT (SELECT %(limit)s - live FROM n))
)
UPDATE upwell.pending p
   SET token = gen_random_uuid(), slot = %(slot)s, claimed_at = clock_timestamp(),
       lease_until = clock_timestamp() + %(lease_seconds)s * interval '1 second',
       attempts = p.attempts + (p.token IS NOT NULL)::int,
       last_error = CASE WHEN p.token IS NULL THEN p.last_error ELSE 'its lease ended' END,
       pending_since = least(p.pending_since, p.next_since), next_since = NULL,
       changes = p.changes + p.next_changes, next_changes = 0
  FROM picked
 WHERE p.collection = picked.collection AND p.generation = picked.generation AND p.key = picked.key
RETURNING p.collection, p.generation, p.key, p.lineage, p."offset", p.token::text, p.lane, p.attempts, p.pending_since,
          p.taken_in_at, p.claimed_at, p.changes, p.deadline

-- name: claimed_rows
SELECT _key, _row FROM {record} WHERE _key = ANY(%(keys)b::text[]) AND NOT _deleted

-- name: drop_pending
DELETE FROM upwell.pending
 WHERE (collection, generation, key, token) IN
       (SELECT %(collection)s, %(generation)s, u.key, u.token
          FROM unnest(%(keys)b::text[], %(tokens)b::uuid[]) AS u(key, token))

-- name: known_hashes
-- A text may stand in any number of chunks: one of them is looked at.
SELECT h.chunk_hash FROM unnest(%(hashes)b::bytea[]) AS h(chunk_hash)
 WHERE EXISTS (SELECT FROM {embedding} e WHERE e.chunk_hash = h.chunk_hash)

-- name: own_hashes
SELECT key, array_agg(chunk_hash) FROM {embedding} WHERE key = ANY(%(keys)b::text[]) GROUP BY key

-- name: lock_records_to_embed
SELECT _key, _deleted FROM {record} WHERE _key = ANY(%(keys)b::text[]) ORDER BY _key FOR NO KEY UPDATE

-- name: lock_claims
-- By token: a row that was deleted, made anew or leased to another is not found (H13).
SELECT p.key, p.lineage, p."offset" FROM upwell.pending p
  JOIN unnest(%(keys)b::text[], %(tokens)b::uuid[]) AS u(key, token) ON p.key = u.key AND p.token = u.token
 WHERE p.collection = %(collection)s AND p.generation = %(generation)s
 ORDER BY p.key FOR UPDATE OF p

-- name: stored_vectors
-- Kept and copied vectors are read here, in the transaction that writes them (H17).
SELECT h.chunk_hash, e.embedding
  FROM unnest(%(hashes)b::bytea[]) AS h(chunk_hash)
 CROSS JOIN LATERAL (SELECT embedding::text FROM {embedding} WHERE chunk_hash = h.chunk_hash LIMIT 1) AS e

-- name: cut_embeddings
-- Chunks beyond the end of the new document.
DELETE FROM {embedding} e USING unnest(%(keys)b::text[], %(counts)b::int[]) AS u(key, count)
 WHERE e.key = u.key AND e.chunk_no >= u.count

-- name: upsert_embeddings
-- A row is rewritten only where the hash changed: the HNSW index is what costs.
INSERT INTO {embedding} AS e (key, chunk_no, chunk_hash, chunk_text, embedding, embedded_at)
SELECT u.key, u.chunk_no, u.chunk_hash, u.chunk_text, (%(reals)b::real[])[u.first : u.last]::vector, clock_timestamp()
  FROM unnest(%(keys)b::text[], %(numbers)b::int[], %(hashes)b::bytea[], %(texts)b::text[], %(firsts)b::int[],
              %(lasts)b::int[]) AS u(key, chunk_no, chunk_hash, chunk_text, first, last)
ON CONFLICT (key, chunk_no) DO UPDATE
   SET chunk_hash = excluded.chunk_hash, chunk_text = excluded.chunk_text, embedding = excluded.embedding,
       embedded_at = excluded.embedded_at
 WHERE e.chunk_hash <> excluded.chunk_hash

-- name: move_on_pending
-- A newer text came while the claimed one was encoded: what is pending now began with the first change after the claim,
-- and has that change's deadline: a key that changes all the time is neither always first nor always late.
UPDATE upwell.pending p
   SET token = NULL, slot = NULL, lease_until = NULL, claimed_at = NULL, available_at = clock_timestamp(),
       deadline = coalesce(p.next_since, clock_timestamp()) + c.threshold_seconds * interval '1 second',
       pending_since = next_since, next_since = NULL, changes = next_changes, next_changes = 0
  FROM upwell.collection c
 WHERE c.name = %(collection)s AND p.collection = c.name AND generation = %(generation)s AND key = ANY(%(keys)b::text[])

-- name: return_claims
-- Unwritten claims: what came meanwhile is folded back in.
UPDATE upwell.pending p
   SET token = NULL, slot = NULL, lease_until = NULL, claimed_at = NULL,
       available_at = clock_timestamp() + %(seconds)s * interval '1 second',
       attempts = attempts + %(attempts)s, last_error = %(error)s,
       pending_since = least(pending_since, next_since), next_since = NULL, changes = changes + next_changes,
       next_changes = 0
  FROM unnest(%(keys)b::text[], %(tokens)b::uuid[]) AS u(key, token)
 WHERE p.collection = %(collection)s AND p.generation = %(generation)s AND p.key = u.key AND p.token = u.token

-- name: audit_embeddings
INSERT INTO upwell.audit (collection, action, key, lineage, first_offset, last_offset, generation, text_hash, chunks, detail)
SELECT %(collection)s, 'embedded', u.key, u.lineage, u."offset", u."offset", %(generation)s, r._text_hash, u.chunks,
       jsonb_build_object('encoded', u.encoded, 'model', (SELECT model FROM upwell.generation
                           WHERE collection = %(collection)s AND number = %(generation)s))
  FROM unnest(%(keys)b::text[], %(lineages)b::int[], %(offsets)b::bigint[], %(counts)b::int[], %(encoded)b::int[])
       AS u(key, lineage, "offset", chunks, encoded)
  JOIN {record} r ON r._key = u.key

-- name: embed_dead_letter
INSERT INTO upwell.dead_letter (collection, stage, generation, lineage, "offset", key, error_class, error, committed_at)
SELECT collection, 'embed', generation, lineage, "offset", key, %(error_class)s, %(error)s,
       least(pending_since, next_since)
  FROM upwell.pending
 WHERE collection = %(collection)s AND generation = %(generation)s AND key = %(key)s AND token = %(token)s::uuid
   AND (lineage, "offset") = (%(lineage)s, %(offset)s)

-- name: audit_embed_dead_letter
INSERT INTO upwell.audit (collection, action, key, lineage, first_offset, last_offset, generation, detail)
VALUES (%(collection)s, 'dead_letter', %(key)s, %(lineage)s, %(offset)s, %(offset)s, %(generation)s,
        jsonb_build_object('stage', 'embed', 'error_class', %(error_class)s::text))

-- name: give_back
-- One transaction may hold rows of a claim that others wait for, so these are locked in the order that all share (H20).
UPDATE upwell.pending p
   SET token = NULL, slot = NULL, lease_until = NULL, claimed_at = NULL,
       pending_since = least(p.pending_since, p.next_since), next_since = NULL, changes = p.changes + p.next_changes,
       next_changes = 0
  FROM (SELECT p.key, p.token FROM upwell.pending p
          JOIN unnest(%(keys)b::text[], %(tokens)b::uuid[]) AS u(key, token) ON p.key = u.key AND p.token = u.token
         WHERE p.collection = %(collection)s AND p.generation = %(generation)s
         ORDER BY p.key FOR UPDATE OF p) AS mine
 WHERE p.collection = %(collection)s AND p.generation = %(generation)s AND p.key = mine.key AND p.token = mine.token

-- name: release_slot
-- What an intake transaction holds just now is for the next time: one that waits for a row must hold no other.
UPDATE upwell.pending p
   SET token = NULL, slot = NULL, lease_until = NULL, claimed_at = NULL,
       attempts = attempts + %(died)s::bool::int,
       last_error = CASE WHEN %(died)s::bool THEN 'its worker ended' ELSE last_error END,
       pending_since = least(pending_since, next_since), next_since = NULL, changes = changes + next_changes,
       next_changes = 0
  FROM (SELECT collection, generation, key FROM upwell.pending
         WHERE slot = %(slot)s AND token IS NOT NULL FOR UPDATE SKIP LOCKED) AS mine
 WHERE p.collection = mine.collection AND p.generation = mine.generation AND p.key = mine.key

-- name: slot_holds
SELECT EXISTS (SELECT FROM upwell.pending WHERE slot = %(slot)s AND token IS NOT NULL)

-- name: generations
SELECT collection, number, fingerprint, model, dimension, template, max_tokens, overlap_tokens, state
  FROM upwell.generation WHERE state <> 'dropped' ORDER BY collection, number

-- name: collections
SELECT name, key_columns FROM upwell.collection

-- name: column_types
-- Key and metadata columns of a record table, in order, with their types.
SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
 WHERE a.attrelid = to_regclass(%(table)s) AND a.attnum > 0 AND NOT a.attisdropped AND left(a.attname, 1) <> '_'
 ORDER BY a.attnum

-- name: add_counters
INSERT INTO upwell.counter AS c (collection, minute, name, writer, value)
SELECT u.collection, u.minute, u.name, %(writer)s, u.value
  FROM unnest(%(collections)b::text[], %(minutes)b::timestamptz[], %(names)b::text[], %(values)b::bigint[])
       AS u(collection, minute, name, value)
ON CONFLICT (collection, minute, name, writer) DO UPDATE SET value = c.value + excluded.value

-- name: set_slow_changes
-- What this writer had of these minutes goes: it sends all of its ten again.
WITH gone AS (
    DELETE FROM upwell.slow_change
     WHERE (collection, bucket, writer) IN (
           SELECT u.collection, u.bucket, %(writer)s
             FROM unnest(%(collections)b::text[], %(buckets)b::timestamptz[]) AS u(collection, bucket))
)
INSERT INTO upwell.slow_change (collection, bucket, writer, key, seconds, committed_at, visible_at, stages)
SELECT u.collection, u.bucket, %(writer)s, u.key, u.seconds, u.committed_at, u.visible_at, u.stages
  FROM unnest(%(collections)b::text[], %(buckets)b::timestamptz[], %(keys)b::text[], %(seconds)b::float8[],
              %(committed)b::timestamptz[], %(visible)b::timestamptz[], %(stages)b::jsonb[])
       AS u(collection, bucket, key, seconds, committed_at, visible_at, stages)

-- name: set_sketches
INSERT INTO upwell.delay (collection, minute, stage, writer, sketch)
SELECT u.collection, u.minute, u.stage, %(writer)s, u.sketch
  FROM unnest(%(collections)b::text[], %(minutes)b::timestamptz[], %(stages)b::text[], %(sketches)b::jsonb[])
       AS u(collection, minute, stage, sketch)
ON CONFLICT (collection, minute, stage, writer) DO UPDATE SET sketch = excluded.sketch

-- name: add_judged
-- Many write to a row, all in the order of its key. A collection that was removed meanwhile has no history any more.
INSERT INTO upwell.freshness_history AS h (collection, bucket, good, bad)
SELECT u.collection, u.minute, u.good, u.bad
  FROM unnest(%(collections)b::text[], %(minutes)b::timestamptz[], %(good)b::bigint[], %(bad)b::bigint[])
       AS u(collection, minute, good, bad)
  JOIN upwell.collection c ON c.name = u.collection
 ORDER BY u.collection, u.minute
ON CONFLICT (collection, bucket) DO UPDATE SET good = h.good + excluded.good, bad = h.bad + excluded.bad

-- name: keep
-- For this session, whatever the defaults of server, database and role are.
SELECT set_config(name, value, false) FROM unnest(%(names)b::text[], %(values)b::text[]) AS s(name, value)

-- name: take_slot
SELECT pg_try_advisory_lock(hashtext('upwell.worker'), hashtext(%(slot)s))

-- name: register_worker
INSERT INTO upwell.worker (slot, host, pid) VALUES (%(slot)s, %(host)s, %(pid)s)
ON CONFLICT (slot) DO UPDATE
   SET host = excluded.host, pid = excluded.pid, started_at = clock_timestamp(), seen_at = clock_timestamp(),
       problems = '[]', url = ''

-- name: seen_worker
UPDATE upwell.worker SET seen_at = clock_timestamp(), url = %(url)s WHERE slot = %(slot)s

-- name: set_worker_problems
UPDATE upwell.worker SET problems = %(problems)s WHERE slot = %(slot)s

-- name: set_blocked
-- `since` is that of the first time, unless it was over in between and nobody said so.
INSERT INTO upwell.blocked AS b (collection, slot, reason) VALUES (%(collection)s, %(slot)s, %(reason)s)
ON CONFLICT (collection, slot) DO UPDATE
   SET reason = excluded.reason, seen_at = clock_timestamp(),
       since = CASE WHEN b.seen_at < clock_timestamp() - %(blocked_seconds)s * interval '1 second'
                    THEN clock_timestamp() ELSE b.since END

-- name: clear_blocked
DELETE FROM upwell.blocked WHERE collection = %(collection)s AND slot = %(slot)s

-- name: clear_blocked_slot
-- A worker that starts has not found anything yet.
DELETE FROM upwell.blocked WHERE slot = %(slot)s

-- name: make_audit_partitions
SELECT upwell.make_audit_partitions(3, %(retention_days)s)

-- name: repairs_due
-- Whether a re-read is wanted that nobody has looked after for a while.
SELECT EXISTS (SELECT FROM upwell.repair
                WHERE looked_at IS NULL OR looked_at < clock_timestamp() - %(again_seconds)s * interval '1 second')

-- name: re_readable
-- Collections with re-reads, and whether a signal may be sent: not before the collection's own scan has ended, nor
-- while another's runs, whose completion would carry the wrong id.
SELECT name, table_name, key_columns,
       (load_state = 'complete' OR load_detail ? 'ends')
       AND NOT EXISTS (SELECT FROM upwell.collection WHERE load_state = 'loading' AND NOT load_detail ? 'ends') AS allowed
  FROM upwell.collection WHERE name IN (SELECT collection FROM upwell.repair) ORDER BY name

-- name: wanted_repairs
-- `wanted`: the record is still the version that the re-read was asked for.
SELECT r.key, r.lineage, r."offset", s._transaction_id, s._key IS NOT NULL AS wanted
  FROM upwell.repair r
  LEFT JOIN {record} s ON s._key = r.key AND (s._lineage, s._offset) = (r.lineage, r."offset")
 WHERE r.collection = %(collection)s
   AND (looked_at IS NULL OR looked_at < clock_timestamp() - %(again_seconds)s * interval '1 second')
 ORDER BY looked_at NULLS FIRST, requested_at LIMIT 100

-- name: looked_at_repairs
UPDATE upwell.repair SET looked_at = clock_timestamp(), asked = asked OR %(asked)s
 WHERE collection = %(collection)s
   AND (key, lineage, "offset") IN (SELECT * FROM unnest(%(keys)b::text[], %(lineages)b::int[], %(offsets)b::bigint[]))

-- name: drop_repairs
DELETE FROM upwell.repair
 WHERE collection = %(collection)s
   AND (key, lineage, "offset") IN (SELECT * FROM unnest(%(keys)b::text[], %(lineages)b::int[], %(offsets)b::bigint[]))

-- name: lock_absent
-- Of keys that the source does not have, those whose record is still the version that was looked for.
SELECT _key FROM {record}
 WHERE NOT _deleted
   AND (_key, _lineage, _offset) IN (SELECT * FROM unnest(%(keys)b::text[], %(lineages)b::int[], %(offsets)b::bigint[]))
 ORDER BY _key FOR UPDATE

-- name: mark_absent
-- It keeps its version, and what says which replays it has seen.
UPDATE {record} SET _deleted = true, _row = NULL, _text_hash = ''{emptied} WHERE _key = ANY(%(keys)b::text[])

-- name: audit_absent
INSERT INTO upwell.audit (collection, action, key, lineage, first_offset, last_offset, detail)
SELECT %(collection)s, 'deleted', _key, _lineage, _offset, _offset, jsonb_build_object('reason', %(reason)s::text)
  FROM {record} WHERE _key = ANY(%(keys)b::text[])

-- name: generation_numbers
SELECT number FROM upwell.generation WHERE collection = %(collection)s AND state <> 'dropped'

-- name: close_absent_dead_letters
UPDATE upwell.dead_letter d
   SET closed_at = clock_timestamp(), closed_by = 'superseded', key_bytes = NULL, value_bytes = NULL, headers = NULL
  FROM unnest(%(keys)b::text[], %(lineages)b::int[], %(offsets)b::bigint[]) AS u(key, lineage, "offset")
 WHERE d.collection = %(collection)s AND d.key = u.key AND closed_at IS NULL
   AND (d.lineage, d."offset") <= (u.lineage, u."offset")

-- name: try_lock_signals
-- Whoever has it sends signals, or works on re-reads; it goes with the session.
SELECT pg_try_advisory_lock(hashtext('upwell.signal'), 0)
