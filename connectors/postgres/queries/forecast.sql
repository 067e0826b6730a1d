-- name: queue
-- What waits to be embedded, by collection, whether its generation is live, lane, and a twentieth of the threshold: how
-- many, and their mean time left (slot 0: late). A sample of whole blocks, some hundred of them or all, so that a million
-- rows cost no more than some ten thousand; counts are scaled up.
WITH size AS MATERIALIZED (
    SELECT least(100.0, 100.0 * %(blocks)s
                        / greatest(pg_relation_size('upwell.pending') / current_setting('block_size')::int, 1)) AS percent
), sampled AS (
    SELECT p.collection, p.generation, p.lane, extract(epoch FROM p.deadline - statement_timestamp())::float8 AS left_seconds
      FROM upwell.pending p TABLESAMPLE SYSTEM ((SELECT percent FROM size))
)
SELECT s.collection, g.state = 'live' AS is_live, s.lane, b.slot, count(*) * 100.0 / (SELECT percent FROM size) AS texts,
       avg(s.left_seconds)
  FROM sampled s
  JOIN upwell.collection c ON c.name = s.collection
  JOIN upwell.generation g ON g.collection = s.collection AND g.number = s.generation
 CROSS JOIN LATERAL (SELECT CASE WHEN s.lane <> 'live' OR s.left_seconds <= 0 THEN 0
                            ELSE ceil(least(s.left_seconds / c.threshold_seconds, 1) * 20)::int END AS slot) b
 GROUP BY s.collection, is_live, s.lane, b.slot
 ORDER BY s.collection, is_live, s.lane, b.slot

-- name: rates
-- Sums of the last minutes and of the last hour, by collection and name.
SELECT collection, name, coalesce(sum(value) FILTER (WHERE minute >= %(recent)s), 0)::bigint, sum(value)::bigint
  FROM upwell.counter
 WHERE collection IN (SELECT name FROM upwell.collection) AND minute >= %(hour)s
   AND name IN ('to_embed', 'embed_texts', 'embed_busy_ms')
 GROUP BY collection, name

-- name: collections
SELECT name, threshold_seconds FROM upwell.collection ORDER BY name

-- name: workers
SELECT count(*), clock_timestamp() FROM upwell.worker
 WHERE seen_at > clock_timestamp() - %(silent_seconds)s * interval '1 second'
