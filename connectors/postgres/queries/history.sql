-- The history of freshness: verdicts by minute, and how counts, sketches and slow changes of the past are kept in bounded
-- space. Days and hours are UTC's.

-- name: add_verdicts
-- A minute has the worst verdict given in it, whoever gave it and how often. Rows are locked in the order of their key, as
-- by workers that count good and bad changes; a second that says nothing new writes nothing.
INSERT INTO upwell.freshness_history AS h
       (collection, bucket, fresh, stale, incomplete, unknown, staleness_max_seconds, pending_max)
SELECT u.collection, date_trunc('minute', %(at)s::timestamptz, 'UTC'), (u.verdict = 'FRESH')::int,
       (u.verdict = 'STALE')::int, (u.verdict = 'INCOMPLETE')::int, (u.verdict = 'UNKNOWN')::int,
       u.staleness, least(u.pending, 2147483647)
  FROM unnest(%(collections)s::text[], %(verdicts)s::text[], %(staleness)s::real[], %(pending)s::bigint[])
       AS u(collection, verdict, staleness, pending)
  JOIN upwell.collection c ON c.name = u.collection
 ORDER BY u.collection
ON CONFLICT (collection, bucket) DO UPDATE
   SET unknown = greatest(h.unknown, excluded.unknown),
       stale = CASE WHEN h.unknown + excluded.unknown > 0 THEN 0 ELSE greatest(h.stale, excluded.stale) END,
       incomplete = CASE WHEN h.unknown + excluded.unknown + h.stale + excluded.stale > 0 THEN 0
                         ELSE greatest(h.incomplete, excluded.incomplete) END,
       fresh = CASE WHEN h.unknown + excluded.unknown + h.stale + excluded.stale + h.incomplete + excluded.incomplete > 0
                    THEN 0 ELSE greatest(h.fresh, excluded.fresh) END,
       staleness_max_seconds = greatest(h.staleness_max_seconds, excluded.staleness_max_seconds),
       pending_max = greatest(h.pending_max, excluded.pending_max)
 WHERE h.minutes = 1
   AND (h.unknown * 8 + h.stale * 4 + h.incomplete * 2 + h.fresh
        < excluded.unknown * 8 + excluded.stale * 4 + excluded.incomplete * 2 + excluded.fresh
        OR coalesce(excluded.staleness_max_seconds > h.staleness_max_seconds, excluded.staleness_max_seconds IS NOT NULL)
        OR excluded.pending_max > h.pending_max)

-- name: buckets
-- And the newest row before: it says that the collection is older.
SELECT n.name, h.bucket, h.minutes, h.fresh, h.stale, h.incomplete, h.unknown, h.staleness_max_seconds, h.pending_max,
       h.good, h.bad
  FROM unnest(%(names)s::text[]) AS n(name)
 CROSS JOIN LATERAL (
    (SELECT * FROM upwell.freshness_history WHERE collection = n.name AND bucket < %(since)s ORDER BY bucket DESC LIMIT 1)
    UNION ALL
    (SELECT * FROM upwell.freshness_history WHERE collection = n.name AND bucket >= %(since)s)) AS h
 ORDER BY n.name, h.bucket

-- name: try_lock
SELECT pg_try_advisory_lock(hashtext('upwell.history'), 0)

-- name: unlock
SELECT pg_advisory_unlock(hashtext('upwell.history'), 0)

-- name: clock
SELECT clock_timestamp()

-- name: due_minutes
-- Hours with minutes to roll up. A collection's first hour keeps its minutes: before the first of them there was nothing,
-- and in an hour of sixty minutes it would be unknown.
SELECT DISTINCT date_trunc('hour', h.bucket, 'UTC') AS first FROM upwell.freshness_history h
 WHERE h.minutes = 1 AND h.bucket < date_trunc('hour', %(before)s::timestamptz, 'UTC')
   AND EXISTS (SELECT FROM upwell.freshness_history e
                WHERE e.collection = h.collection AND e.bucket < date_trunc('hour', h.bucket, 'UTC'))
 ORDER BY first

-- name: roll_minutes
-- What was rolled up before is added to: a worker may have been away for days with changes that it had counted.
WITH due AS (
    DELETE FROM upwell.freshness_history h
     WHERE minutes = 1 AND bucket >= %(first)s AND bucket < %(first)s::timestamptz + interval '1 hour'
       AND EXISTS (SELECT FROM upwell.freshness_history e WHERE e.collection = h.collection AND e.bucket < %(first)s)
    RETURNING *
)
INSERT INTO upwell.freshness_history AS h
       (collection, bucket, minutes, fresh, stale, incomplete, unknown, staleness_max_seconds, pending_max, good, bad)
SELECT collection, %(first)s, 60, sum(fresh), sum(stale), sum(incomplete), sum(unknown), max(staleness_max_seconds),
       max(pending_max), sum(good), sum(bad)
  FROM due GROUP BY collection ORDER BY collection
ON CONFLICT (collection, bucket) DO UPDATE
   SET fresh = h.fresh + excluded.fresh, stale = h.stale + excluded.stale,
       incomplete = h.incomplete + excluded.incomplete, unknown = h.unknown + excluded.unknown,
       staleness_max_seconds = greatest(h.staleness_max_seconds, excluded.staleness_max_seconds),
       pending_max = greatest(h.pending_max, excluded.pending_max), good = h.good + excluded.good, bad = h.bad + excluded.bad

-- name: due_counters
SELECT DISTINCT date_trunc(%(batch)s, minute, 'UTC') AS first FROM upwell.counter
 WHERE minute < date_trunc(%(unit)s, %(before)s::timestamptz, 'UTC')
   AND (writer <> '' OR minute <> date_trunc(%(unit)s, minute, 'UTC'))
 ORDER BY first

-- name: roll_counters
-- Rolled-up rows have no writer; what comes late is added to them.
WITH due AS (
    DELETE FROM upwell.counter
     WHERE minute >= %(first)s AND minute < %(first)s::timestamptz + ('1 ' || %(batch)s)::interval
       AND minute < date_trunc(%(unit)s, %(before)s::timestamptz, 'UTC')
       AND (writer <> '' OR minute <> date_trunc(%(unit)s, minute, 'UTC'))
    RETURNING collection, date_trunc(%(unit)s, minute, 'UTC') AS minute, name, value
)
INSERT INTO upwell.counter AS c (collection, minute, name, writer, value)
SELECT collection, minute, name, '', sum(value) FROM due GROUP BY collection, minute, name ORDER BY collection, minute, name
ON CONFLICT (collection, minute, name, writer) DO UPDATE SET value = c.value + excluded.value

-- name: due_delays
-- A writer replaces its sketches of the last minutes: they are settled once it has gone on (`HELD` of measures.py), or has
-- not for a day.
WITH gone_on AS MATERIALIZED (SELECT writer, max(minute) - interval '3 minutes' AS to_minute FROM upwell.delay GROUP BY writer)
SELECT DISTINCT date_trunc(%(batch)s, minute, 'UTC') AS first FROM upwell.delay d JOIN gone_on g USING (writer)
 WHERE minute < date_trunc(%(unit)s, %(before)s::timestamptz, 'UTC') AND stage = ANY(%(stages)s::text[])
   AND (writer <> '' AND (minute < g.to_minute OR minute < %(dead)s)
        OR writer = '' AND minute <> date_trunc(%(unit)s, minute, 'UTC'))
 ORDER BY first

-- name: roll_delays
-- The merge of read.sql's `sketches`: bins of the same key add up. Within the statement a sketch goes and comes whole.
WITH gone_on AS MATERIALIZED (
    SELECT writer, max(minute) - interval '3 minutes' AS to_minute FROM upwell.delay GROUP BY writer
), due AS (
    DELETE FROM upwell.delay d USING gone_on g
     WHERE g.writer = d.writer AND (d.writer = '' OR minute < g.to_minute OR minute < %(dead)s)
       AND minute >= %(first)s AND minute < %(first)s::timestamptz + ('1 ' || %(batch)s)::interval
       AND minute < date_trunc(%(unit)s, %(before)s::timestamptz, 'UTC') AND stage = ANY(%(stages)s::text[])
    RETURNING d.collection, date_trunc(%(unit)s, d.minute, 'UTC') AS minute, d.stage, d.sketch
), bins AS (
    SELECT collection, minute, stage, string_agg(key || ':' || weight, ' ') AS bins
      FROM (SELECT d.collection, d.minute, d.stage, b.key, sum(b.weight) AS weight
              FROM due d CROSS JOIN upwell.sketch_bins(d.sketch) AS b
             GROUP BY d.collection, d.minute, d.stage, b.key) AS summed
     GROUP BY collection, minute, stage
), rest AS (
    SELECT collection, minute, stage, sum((sketch ->> 'zero')::float8) AS zero, sum((sketch ->> 'sum')::float8) AS sum,
           min((sketch ->> 'min')::float8) AS min, max((sketch ->> 'max')::float8) AS max
      FROM due GROUP BY collection, minute, stage
)
INSERT INTO upwell.delay (collection, minute, stage, writer, sketch)
SELECT r.collection, r.minute, r.stage, '',
       jsonb_build_object('bins', coalesce(b.bins, ''), 'zero', r.zero, 'sum', r.sum, 'min', r.min, 'max', r.max)
  FROM rest r LEFT JOIN bins b ON (b.collection, b.minute, b.stage) = (r.collection, r.minute, r.stage)

-- name: due_slow_changes
SELECT DISTINCT date_trunc(%(batch)s, bucket, 'UTC') AS first FROM upwell.slow_change
 WHERE bucket < date_trunc(%(unit)s, %(before)s::timestamptz, 'UTC') AND bucket <> date_trunc(%(unit)s, bucket, 'UTC')
 ORDER BY first

-- name: roll_slow_changes
-- The ten slowest stay; all are deleted and these written anew, so that one statement does it.
WITH due AS (
    DELETE FROM upwell.slow_change
     WHERE bucket >= %(first)s AND bucket < %(first)s::timestamptz + ('1 ' || %(batch)s)::interval
       AND bucket < date_trunc(%(unit)s, %(before)s::timestamptz, 'UTC')
    RETURNING *
), ranked AS (
    SELECT *, date_trunc(%(unit)s, bucket, 'UTC') AS first,
           row_number() OVER (PARTITION BY collection, date_trunc(%(unit)s, bucket, 'UTC')
                              ORDER BY seconds DESC, visible_at, key) AS rank
      FROM due
)
INSERT INTO upwell.slow_change (collection, bucket, key, seconds, committed_at, visible_at, stages)
SELECT collection, first, key, seconds, committed_at, visible_at, stages FROM ranked WHERE rank <= 10

-- name: drop_old
-- Some of the rows beyond their collection's window and a day more. What the spec does not name stays for the longest one.
DELETE FROM {table} WHERE ctid IN (
    SELECT t.ctid FROM {table} t
      LEFT JOIN unnest(%(names)s::text[], %(days)s::int[]) AS w(name, days) ON w.name = t.collection
     WHERE t.{time} < %(at)s::timestamptz - (coalesce(w.days, %(longest)s) + 1) * interval '1 day'
     LIMIT %(limit)s)

-- name: drop_canary_audit
SELECT upwell.drop_canary_audit()
