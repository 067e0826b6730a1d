-- What the capture side keeps in the sink: lineages, topics with their identity, and how far first loads are.

-- name: schema_present
-- Whether the sink was migrated at all.
SELECT to_regclass('upwell.lineage') IS NOT NULL AND to_regclass('upwell.collection') IS NOT NULL AS present;

-- name: generations
-- All that are fed, the live one of a collection first.
SELECT collection, number, fingerprint, model, dimension, template, max_tokens, overlap_tokens, state
  FROM upwell.generation WHERE state <> 'dropped' ORDER BY collection, state <> 'live', number;

-- name: lineage
-- The newest lineage.
SELECT number, topic_prefix FROM upwell.lineage ORDER BY number DESC LIMIT 1;

-- name: create_lineage
-- A lineage; of two at once the second waits here, and finds it there.
INSERT INTO upwell.lineage (number, topic_prefix) VALUES (%(number)s, %(topic_prefix)s) ON CONFLICT DO NOTHING;

-- name: begin_loads
-- Whatever is stored is of an ended lineage now: each table is read again, and what is not found is swept.
UPDATE upwell.collection SET load_state = 'incomplete', load_detail = '{"reason": "rebuild"}' WHERE name <> 'canary';

-- name: ended_topics
-- Topics of lineages that are over.
SELECT topic FROM upwell.topic WHERE lineage < %(lineage)s ORDER BY topic;

-- name: collection_topics
-- A collection's own topics, of every lineage.
SELECT topic FROM upwell.topic WHERE collection = %(collection)s ORDER BY topic;

-- name: clock
-- The sink's clock.
SELECT clock_timestamp() AS now;

-- name: workers_of_before
-- Workers that live, and were started before.
SELECT count(*) AS workers FROM upwell.worker
 WHERE started_at < %(moment)s AND seen_at > clock_timestamp() - %(silent_seconds)s * interval '1 second';

-- name: forget_topics
-- Their positions with them: a topic of the name that is made anew begins at 0.
WITH gone AS (DELETE FROM upwell.topic WHERE topic = ANY(%(topics)s::text[]) RETURNING topic)
DELETE FROM upwell.position WHERE topic IN (SELECT topic FROM gone);

-- name: deployment
-- What a worker is started for: the newest lineage with the topics of collections, and the columns of records that are
-- the source's. Our own come with a newer version, beside which this one goes on.
SELECT coalesce((SELECT max(number) FROM upwell.lineage), 0) AS lineage,
       ARRAY(SELECT topic || ' ' || topic_id FROM upwell.topic
              WHERE collection IS NOT NULL AND lineage = (SELECT max(number) FROM upwell.lineage)
              ORDER BY topic) AS topics,
       ARRAY(SELECT c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
              WHERE c.relnamespace = 'upwell'::regnamespace AND left(c.relname, 7) = 'record_' AND c.relkind = 'r'
                AND a.attnum > 0 AND NOT a.attisdropped AND left(a.attname, 1) <> '_'
              ORDER BY 1) AS columns;

-- name: topics
-- Recorded topics of a lineage.
SELECT topic, topic_id, partitions FROM upwell.topic WHERE lineage = %(lineage)s;

-- name: gaps
-- Lost changes that were seen only once.
SELECT reason FROM upwell.gap WHERE lineage = %(lineage)s ORDER BY found_at;

-- name: record_topic
-- A topic as it was created; never overwritten.
INSERT INTO upwell.topic (topic, lineage, collection, topic_id, partitions)
VALUES (%(topic)s, %(lineage)s, %(collection)s, %(topic_id)s, %(partitions)s)
ON CONFLICT (topic) DO NOTHING;

-- name: loads
-- First loads by collection, and the last truncate that was taken in.
SELECT name, load_state AS state, load_detail AS detail, fence_lineage, fence_lsn
  FROM upwell.collection
 WHERE name = ANY (%(names)s);

-- name: set_load
-- How far a first load is.
UPDATE upwell.collection SET load_state = %(state)s, load_detail = %(detail)s WHERE name = %(name)s;

-- name: loading
-- Whether a table is being read for the first time.
SELECT EXISTS (SELECT FROM upwell.collection WHERE load_state = 'loading' AND NOT load_detail ? 'ends') AS loading;

-- name: scanned
-- Whether a table has been read to its end and is not complete.
SELECT EXISTS (SELECT FROM upwell.collection
                WHERE load_state = 'loading' AND load_detail ? 'ends' AND name = ANY(%(names)s::text[])) AS scanned;

-- name: try_capturing
-- Whoever has it applies, rebuilds and follows loads; it goes with the session.
SELECT pg_try_advisory_lock(hashtext('upwell.capturing'), 0) AS taken;

-- name: try_pacing
-- Whoever has it paces first loads; it goes with the session.
SELECT pg_try_advisory_lock(hashtext('upwell.pacing'), 0) AS taken;

-- name: positions
-- Next offset of each partition of a topic that has been taken in.
SELECT partition, next_offset FROM upwell.position WHERE topic = %(topic)s;

-- name: try_completing
-- Whoever has it brings loads to their end; it goes with the session.
SELECT pg_try_advisory_lock(hashtext('upwell.completing'), 0) AS taken;

-- name: backfill_pending
-- Rows of the first load that are taken in and not yet searchable; what fills beside the live generation is no load.
SELECT count(*) AS rows FROM upwell.pending p
  JOIN upwell.generation g ON g.collection = p.collection AND g.number = p.generation AND g.state = 'live'
 WHERE p.collection = %(collection)s AND p.lane = 'backfill';

-- name: re_reading
-- Tables of which single rows may be under way again.
SELECT DISTINCT collection FROM upwell.repair
 WHERE asked AND collection = ANY(%(names)s::text[])
   AND looked_at > clock_timestamp() - %(again_seconds)s * interval '1 second';

-- name: lock_signals
-- One signal at a time, and none between the state that goes with another and that one.
SELECT pg_advisory_lock(hashtext('upwell.signal'), 0);

-- name: unlock_signals
-- Its end; a lost session ends it, too.
SELECT pg_advisory_unlock(hashtext('upwell.signal'), 0);
