-- name: one_snapshot
-- All that a report reads belongs to one moment, and nothing is written.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- name: clock
SELECT clock_timestamp()

-- name: collections
SELECT name, load_state, load_detail FROM upwell.collection
 WHERE name <> 'canary' AND (%(only)s::text IS NULL OR name = %(only)s)
 ORDER BY name

-- name: pending
-- Of live generations only: what fills beside them is not what is searched.
SELECT p.collection, p.lane, count(*), min(least(p.pending_since, p.next_since))
  FROM upwell.pending p
  JOIN upwell.generation g ON g.collection = p.collection AND g.number = p.generation AND g.state = 'live'
 WHERE p.collection = ANY(%(names)s::text[])
 GROUP BY p.collection, p.lane

-- name: dead_letters
-- Of intake, and of live generations.
SELECT d.collection, count(*) FROM upwell.dead_letter d
 WHERE d.closed_at IS NULL AND d.collection = ANY(%(names)s::text[])
   AND (d.generation IS NULL OR EXISTS (SELECT FROM upwell.generation g
        WHERE g.collection = d.collection AND g.number = d.generation AND g.state = 'live'))
 GROUP BY d.collection

-- name: counters
SELECT collection, name, sum(value)::bigint FROM upwell.counter
 WHERE collection = ANY(%(names)s::text[]) AND minute >= %(minute)s
 GROUP BY collection, name

-- name: sketches
-- One sketch for each stage: bins of the same key add up, so a week of minutes need not travel.
WITH minutes AS MATERIALIZED (
    SELECT collection, stage, sketch FROM upwell.delay
     WHERE collection = ANY(%(names)s::text[]) AND minute >= %(minute)s
), bins AS (
    SELECT collection, stage, jsonb_object_agg(key, weight) AS bins
      FROM (SELECT m.collection, m.stage, b.key, sum(b.weight) AS weight
              FROM minutes m CROSS JOIN upwell.sketch_bins(m.sketch) AS b
             GROUP BY m.collection, m.stage, b.key) AS summed
     GROUP BY collection, stage
), rest AS (
    SELECT collection, stage, sum((sketch ->> 'zero')::float8) AS zero, sum((sketch ->> 'sum')::float8) AS sum,
           min((sketch ->> 'min')::float8) AS min, max((sketch ->> 'max')::float8) AS max
      FROM minutes GROUP BY collection, stage
)
SELECT r.collection, r.stage,
       jsonb_build_object('bins', coalesce(b.bins, '{}'), 'zero', r.zero, 'sum', r.sum, 'min', r.min, 'max', r.max)
  FROM rest r LEFT JOIN bins b ON b.collection = r.collection AND b.stage = r.stage

-- name: workers
SELECT slot, host, pid, started_at, seen_at, problems FROM upwell.worker ORDER BY slot

-- name: freshness
SELECT collection, verdict, reason, watermark, staleness_seconds, threshold_seconds, evaluated_at,
       coalesce(slo, '{}')
  FROM upwell.freshness WHERE collection = ANY(%(names)s::text[]) ORDER BY collection

-- name: slow_changes
-- Old ones are kept by the day, so a bucket may begin before the window. A key that several writers have counts once.
SELECT collection, key, seconds, committed_at, visible_at, stages
  FROM (SELECT s.*, row_number() OVER (PARTITION BY collection ORDER BY seconds DESC, visible_at, key) AS rank
          FROM (SELECT DISTINCT collection, key, seconds::float8, committed_at, visible_at, stages
                  FROM upwell.slow_change
                 WHERE collection = ANY(%(names)s::text[]) AND visible_at >= %(since)s
                   AND bucket >= %(since)s::timestamptz - interval '1 day') AS s) AS ranked
 WHERE rank <= 10
 ORDER BY collection, rank

-- name: monitors
SELECT name, host, pid, seen_at FROM upwell.monitor ORDER BY seen_at DESC, name

-- name: blocked
-- What no worker says any more is over.
SELECT collection, min(slot), min(reason), max(extract(epoch FROM clock_timestamp() - since))::float8
  FROM upwell.blocked WHERE seen_at > clock_timestamp() - %(blocked_seconds)s * interval '1 second'
 GROUP BY collection ORDER BY collection

-- name: live_model
SELECT model FROM upwell.generation WHERE collection = %(collection)s AND state = 'live'

-- name: search
-- The key columns are those before `chunk_no` (DESIGN 8), so no table but the function is needed.
SELECT s.*, extract(epoch FROM clock_timestamp() - s.stale_since)::float8 AS _stale_seconds
  FROM {function}(%(model)s, %(vector)s, %(k)s) AS s
