-- Commands on generations. Each that changes anything holds the collection's lock alone (`lock_collection_alone` of
-- sink.sql), so that every intake transaction is either before it, and its rows are seen, or after it, and knows (H19).

-- name: patience
-- Readers come after a statement that waits for a lock: rather give up than hold them up.
SET LOCAL lock_timeout = '5s'

-- name: collection
SELECT key_columns, threshold_seconds, index_m, index_ef_construction, index_ef_search, index_build, index_type
  FROM upwell.collection WHERE name = %(collection)s

-- name: numbers
-- State by number, of dropped ones too.
SELECT number, state FROM upwell.generation WHERE collection = %(collection)s ORDER BY number

-- name: fill
-- All that is stored; what renders blank is found when its turn comes. No commit time: a fill is no change, and must not
-- make anything look late (H39).
INSERT INTO upwell.pending
       (collection, generation, key, lineage, "offset", lane, deadline, changes, taken_in_at)
SELECT c.name, %(number)s, r._key, r._lineage, r._offset, 'backfill',
       clock_timestamp() + c.threshold_seconds * interval '1 second', 0, clock_timestamp()
  FROM {record} r CROSS JOIN upwell.collection c
 WHERE c.name = %(collection)s AND NOT r._deleted

-- name: notify_pending
SELECT pg_notify('upwell_pending', %(collection)s)

-- name: audit
INSERT INTO upwell.audit (collection, action, generation, detail)
VALUES (%(collection)s, %(action)s, %(number)s, %(detail)s::jsonb || jsonb_build_object('by', session_user))

-- name: readiness
-- What keeps a generation from being switched to: rows never embedded, or that search has now and would lose; changes that
-- wait too long; dead letters.
SELECT count(p.key) FILTER (WHERE coalesce(p.pending_since, p.next_since) IS NULL
           OR NOT EXISTS (SELECT FROM {embedding} e WHERE e.key = p.key)
              AND EXISTS (SELECT FROM {live} e WHERE e.key = p.key)) AS unfilled,
       count(p.key) FILTER (WHERE least(p.pending_since, p.next_since)
                              < clock_timestamp() - c.threshold_seconds * interval '1 second') AS late,
       count(p.key) AS pending,
       (SELECT count(*) FROM upwell.dead_letter d
         WHERE d.collection = c.name AND d.generation = %(number)s AND d.closed_at IS NULL) AS dead_letters
  FROM upwell.collection c LEFT JOIN upwell.pending p ON p.collection = c.name AND p.generation = %(number)s
 WHERE c.name = %(collection)s
 GROUP BY c.name, c.threshold_seconds

-- name: last_live
-- Where a rollback goes.
SELECT number FROM upwell.generation WHERE collection = %(collection)s AND state = 'retired'
 ORDER BY live_at DESC NULLS LAST, number DESC LIMIT 1

-- name: retire
UPDATE upwell.generation SET state = 'retired' WHERE collection = %(collection)s AND state = 'live'

-- name: make_live
UPDATE upwell.generation SET state = 'live', live_at = clock_timestamp()
 WHERE collection = %(collection)s AND number = %(number)s

-- name: swap_lanes
-- Changes of the generation that is live now are urgent, those of the one that was are not. A row that waited for its fill
-- has the deadline of its change from here on.
UPDATE upwell.pending p
   SET lane = CASE WHEN generation = %(number)s AND pending_since IS NOT NULL THEN 'live' ELSE 'backfill' END,
       deadline = coalesce(p.pending_since + c.threshold_seconds * interval '1 second', p.deadline)
  FROM upwell.collection c
 WHERE c.name = %(collection)s AND p.collection = c.name

-- name: lower_watermark
-- What waits in the generation that is live now is not searchable any more, though it was in the one before.
UPDATE upwell.watermark w
   SET generation = %(number)s, watermark = CASE WHEN w.watermark IS NOT NULL
                                                 THEN least(w.watermark, u.since - interval '1 microsecond') END
  FROM (SELECT least((SELECT min(least(pending_since, next_since)) FROM upwell.pending
                       WHERE collection = %(collection)s AND generation = %(number)s),
                     (SELECT min(committed_at) FROM upwell.dead_letter
                       WHERE collection = %(collection)s AND generation = %(number)s AND closed_at IS NULL)) AS since) u
 WHERE w.collection = %(collection)s

-- name: drop_pending
DELETE FROM upwell.pending WHERE collection = %(collection)s AND generation = %(number)s

-- name: waive_dead_letters
UPDATE upwell.dead_letter
   SET closed_at = clock_timestamp(), closed_by = 'waived', reason = 'its generation was dropped'
 WHERE collection = %(collection)s AND generation = %(number)s AND closed_at IS NULL

-- name: mark_dropped
UPDATE upwell.generation SET state = 'dropped' WHERE collection = %(collection)s AND number = %(number)s

-- name: facts
-- `fill_rate`: documents a second that the workers embedded for a filling generation in the last five minutes.
SELECT g.created_at,
       (SELECT count(*) FROM {embedding}) AS chunks,
       pg_total_relation_size({regclass}::regclass)
           + coalesce(pg_total_relation_size(to_regclass({repeated})), 0) AS bytes,
       (SELECT count(*) FROM upwell.pending p
         WHERE p.collection = g.collection AND p.generation = g.number) AS pending,
       (SELECT clock_timestamp() - min(least(p.pending_since, p.next_since)) FROM upwell.pending p
         WHERE p.collection = g.collection AND p.generation = g.number) AS oldest,
       (SELECT count(*) FROM upwell.dead_letter d
         WHERE d.collection = g.collection AND d.generation = g.number AND d.closed_at IS NULL) AS dead_letters,
       (SELECT sum(c.value) / extract(epoch FROM clock_timestamp() - greatest(min(c.minute), g.created_at))
          FROM upwell.counter c
         WHERE c.collection = g.collection AND c.name = 'fill_written'
           AND c.minute > clock_timestamp() - interval '5 minutes')::float8 AS fill_rate
  FROM upwell.generation g WHERE g.collection = %(collection)s AND g.number = %(number)s

-- name: problems
-- What living workers cannot do.
SELECT slot, problems FROM upwell.worker
 WHERE problems <> '[]' AND seen_at > clock_timestamp() - interval '20 seconds' ORDER BY slot

-- name: rows
SELECT count(*) AS rows FROM {record} WHERE NOT _deleted

-- name: sample
-- The same ones each time, spread over the table.
SELECT _row FROM {record} WHERE NOT _deleted ORDER BY md5(_key) LIMIT %(limit)s
