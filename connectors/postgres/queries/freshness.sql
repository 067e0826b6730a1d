-- name: one_snapshot
-- What a verdict is made of belongs to one moment (H34).
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- name: now
SELECT clock_timestamp(), coalesce((SELECT max(number) FROM upwell.lineage), 0)

-- name: collections
-- `unreflected`: the oldest commit that was taken in and is not searchable; `letter_since` and `pending_since` are parts of it.
SELECT c.name, c.load_state, coalesce(c.load_detail, '{}'), g.number, w.lineage, w.watermark, w.violations, w.violated_at,
       coalesce(p.rows, 0), p.since, coalesce(d.rows, 0), d.since, r.since
  FROM upwell.collection c
  LEFT JOIN upwell.generation g ON g.collection = c.name AND g.state = 'live'
  LEFT JOIN upwell.watermark w ON w.collection = c.name
  LEFT JOIN LATERAL (SELECT count(*) AS rows, min(least(pending_since, next_since)) AS since FROM upwell.pending
                      WHERE lane = 'live' AND collection = c.name AND generation = g.number) p ON true
  LEFT JOIN LATERAL (SELECT count(*) AS rows, min(committed_at) AS since FROM upwell.dead_letter
                      WHERE collection = c.name AND closed_at IS NULL
                        AND (generation IS NULL OR generation = g.number)) d ON true
  LEFT JOIN LATERAL (SELECT min(committed_at) AS since FROM upwell.repair WHERE collection = c.name) r ON true
 WHERE c.name = ANY(%(names)s::text[])
 ORDER BY c.name

-- name: undated_letters
-- Open dead letters that do not say when they were committed (H35).
SELECT d.collection, coalesce(d.topic, ''), coalesce(d.partition, 0), d."offset" FROM upwell.dead_letter d
 WHERE d.closed_at IS NULL AND d.committed_at IS NULL AND d.collection = ANY(%(names)s::text[])
   AND (d.generation IS NULL OR EXISTS (SELECT FROM upwell.generation g
        WHERE g.collection = d.collection AND g.number = d.generation AND g.state = 'live'))

-- name: positions
SELECT topic, partition, next_offset FROM upwell.position WHERE topic = ANY(%(topics)s::text[])

-- name: workers
-- A worker holds its slot's lock for as long as it lives, so one that is killed is known at once.
SELECT w.slot, w.host, w.pid, extract(epoch FROM clock_timestamp() - w.seen_at)::float8,
       EXISTS (SELECT FROM pg_locks l
                WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND l.classid::bigint = hashtext('upwell.worker')::bigint & 4294967295
                  AND l.objid::bigint = hashtext(w.slot)::bigint & 4294967295), w.problems
  FROM upwell.worker w ORDER BY w.slot

-- name: blocked
-- What no worker says any more is over.
SELECT collection, slot, reason, since FROM upwell.blocked
 WHERE seen_at > clock_timestamp() - %(blocked_seconds)s * interval '1 second' ORDER BY collection, since

-- name: gaps
SELECT reason FROM upwell.gap WHERE lineage = (SELECT max(number) FROM upwell.lineage) ORDER BY found_at

-- name: add_gap
INSERT INTO upwell.gap (lineage, reason) VALUES (%(lineage)s, %(reason)s) ON CONFLICT DO NOTHING

-- name: overdue
-- Changes that are late already, though nobody knows yet by how much: what waits in the live generation, and dead letters.
SELECT c.name, coalesce(p.changes, 0) + coalesce(d.rows, 0)
  FROM upwell.collection c
  LEFT JOIN upwell.generation g ON g.collection = c.name AND g.state = 'live'
 CROSS JOIN LATERAL (SELECT clock_timestamp() + (%(ahead)s - c.threshold_seconds) * interval '1 second' AS before) t
  LEFT JOIN LATERAL (SELECT sum(changes + next_changes) AS changes FROM upwell.pending
                      WHERE lane = 'live' AND collection = c.name AND generation = g.number
                        AND least(pending_since, next_since) < t.before) p ON true
  LEFT JOIN LATERAL (SELECT count(*) AS rows FROM upwell.dead_letter
                      WHERE collection = c.name AND closed_at IS NULL AND coalesce(committed_at, created_at) < t.before
                        AND (generation IS NULL OR generation = g.number)) d ON true
 WHERE c.name = ANY(%(names)s::text[])

-- name: raise_watermarks
-- Within a lineage it only grows, whoever else writes. What was proven of another generation than the one that is live
-- proves nothing: a switch writes its number here.
UPDATE upwell.watermark w
   SET lineage = %(lineage)s, generation = u.generation, watermark = u.watermark, round = u.round,
       moved_at = clock_timestamp()
  FROM unnest(%(collections)s::text[], %(generations)s::int[], %(watermarks)s::timestamptz[], %(rounds)s::bigint[])
       AS u(collection, generation, watermark, round)
 WHERE w.collection = u.collection AND coalesce(w.generation, u.generation) = u.generation
   AND (w.lineage < %(lineage)s OR w.lineage = %(lineage)s AND (w.watermark IS NULL OR w.watermark < u.watermark))

-- name: write_evaluations
-- Of two monitors the later evaluation stays; `delay` and `slo` are written less often.
INSERT INTO upwell.evaluation AS e
       (collection, lineage, evaluated_at, verdict, reason, threshold_seconds, watermark, source_ahead_seconds, pending,
        dead_letters)
SELECT u.collection, %(lineage)s, %(at)s, u.verdict, u.reason, u.threshold, u.watermark, %(ahead)s, u.pending, u.letters
  FROM unnest(%(collections)s::text[], %(verdicts)s::text[], %(reasons)s::text[], %(thresholds)s::float8[],
              %(watermarks)s::timestamptz[], %(pending)s::bigint[], %(letters)s::bigint[])
       AS u(collection, verdict, reason, threshold, watermark, pending, letters)
 ORDER BY u.collection
ON CONFLICT (collection) DO UPDATE
   SET lineage = excluded.lineage, evaluated_at = excluded.evaluated_at, verdict = excluded.verdict,
       reason = excluded.reason, threshold_seconds = excluded.threshold_seconds, watermark = excluded.watermark,
       source_ahead_seconds = excluded.source_ahead_seconds, pending = excluded.pending,
       dead_letters = excluded.dead_letters
 WHERE e.evaluated_at < excluded.evaluated_at
    OR e.evaluated_at > clock_timestamp() + interval '15 seconds' -- the sink's clock has gone back

-- name: write_summaries
UPDATE upwell.evaluation e SET delay = u.delay, slo = u.slo
  FROM unnest(%(collections)s::text[], %(delays)s::jsonb[], %(slos)s::jsonb[]) AS u(collection, delay, slo)
 WHERE e.collection = u.collection

-- name: canary_generation
SELECT number, model FROM upwell.generation WHERE collection = 'canary' AND state = 'live'

-- name: find_canary
-- A real search with the vector that is stored, through the function that applications use, and how near what it finds is
-- to the first canary of the generation. One of an ended lineage is none: a restored source counts below it again.
SELECT s.chunk_text, s.score, 1 - (s.embedding <=> r.embedding::vector),
       CASE WHEN s.embedded_at >= s.source_committed_at -- else the row is already of the next one
            THEN extract(epoch FROM s.embedded_at - s.source_committed_at)::float8 END,
       extract(epoch FROM clock_timestamp() - s.embedded_at)::float8
  FROM upwell.search_canary(%(model)s, (SELECT embedding FROM upwell.canary LIMIT 1), 1) s
  LEFT JOIN upwell.canary_reference r ON r.generation = %(generation)s
 WHERE EXISTS (SELECT FROM upwell.record_canary c WHERE c._lineage = (SELECT max(number) FROM upwell.lineage))

-- name: keep_reference
INSERT INTO upwell.canary_reference (generation, embedding)
SELECT %(generation)s, embedding::real[] FROM upwell.canary LIMIT 1
ON CONFLICT DO NOTHING

-- name: canary_seen
SELECT next_offset, number FROM upwell.canary_seen WHERE lineage = %(lineage)s

-- name: see_canary
INSERT INTO upwell.canary_seen AS c (lineage, next_offset, number) VALUES (%(lineage)s, %(next_offset)s, %(number)s)
ON CONFLICT (lineage) DO UPDATE SET next_offset = excluded.next_offset, number = excluded.number
 WHERE c.next_offset < excluded.next_offset

-- name: register_monitor
INSERT INTO upwell.monitor (name, host, pid, url, version)
VALUES (%(name)s, %(host)s, %(pid)s, %(url)s, %(version)s)
ON CONFLICT (name) DO UPDATE SET host = excluded.host, pid = excluded.pid, url = excluded.url,
       started_at = clock_timestamp(), seen_at = clock_timestamp(), version = excluded.version

-- name: seen_monitor
UPDATE upwell.monitor SET seen_at = clock_timestamp() WHERE name = %(name)s

-- name: forget_monitors
DELETE FROM upwell.monitor WHERE seen_at < clock_timestamp() - interval '1 day'
