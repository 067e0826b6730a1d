-- name: create_record
-- What the source says; a marker has neither row nor text hash. Metadata-only updates stay HOT.
CREATE TABLE IF NOT EXISTS {record} (
    _key text COLLATE "C" PRIMARY KEY,
    _row jsonb,
    _text_hash bytea NOT NULL,
    _lineage int NOT NULL,
    _partition int,
    _offset bigint NOT NULL,
    _deleted boolean NOT NULL,
    _streamed boolean NOT NULL,
    _lsn bigint,
    _sequence_last_commit bigint,
    _transaction_id bigint,
    _fence_lsn bigint,
    _committed_at timestamptz,
    _taken_in_at timestamptz NOT NULL
) WITH (fillfactor = 80)

-- name: add_column
ALTER TABLE {record} ADD COLUMN IF NOT EXISTS {column} {type}

-- name: add_partition
-- Records of before have none: a sweep within their lineage leaves them alone.
ALTER TABLE {record} ADD COLUMN IF NOT EXISTS _partition int

-- name: fill_column
-- A new metadata column of rows that are stored already.
UPDATE {record} r SET {column} = p.{column}
  FROM {record} s, LATERAL jsonb_to_record(s._row) AS p({column} {type})
 WHERE s._key = r._key AND s._row ? {column_name}

-- name: drop_column
ALTER TABLE {record} DROP COLUMN {column}

-- name: read_again
-- Live rows that lack one of the columns; all of them if none is named. They hold no watermark: nothing of them was committed.
INSERT INTO upwell.repair (collection, key, lineage, "offset")
SELECT %(collection)s, _key, _lineage, _offset FROM {record}
 WHERE NOT _deleted AND (cardinality(%(lacking)s::text[]) = 0 OR NOT _row ?& %(lacking)s::text[])
ON CONFLICT (collection, key) DO NOTHING

-- name: is_there
SELECT to_regclass(%(relation)s) IS NOT NULL

-- name: index_key
-- Applications look a row up by its own key.
CREATE INDEX {index} ON {record} ({columns})

-- name: create_embedding
-- What search sees.
CREATE TABLE IF NOT EXISTS {embedding} (
    key text COLLATE "C" NOT NULL,
    chunk_no int NOT NULL,
    chunk_hash bytea NOT NULL,
    chunk_text text NOT NULL,
    embedding {type}({dimension}) NOT NULL,
    embedded_at timestamptz NOT NULL,
    PRIMARY KEY (key, chunk_no)
) WITH (fillfactor = 70)

-- name: index_hash
CREATE INDEX {index} ON {embedding} (chunk_hash)

-- name: create_repeated
-- Chunks of texts that stand in the HNSW index often enough: equal vectors close a part of its graph (ADR 0023). It is a part of
-- the table above: what reads, locks or deletes there does so here, and the planner merges both by distance.
CREATE TABLE {repeated} (PRIMARY KEY (key, chunk_no)) INHERITS ({embedding})

-- name: create_set_apart
-- A chunk is in one of the two. Whoever writes it holds the lock of its record.
CREATE OR REPLACE FUNCTION {set_apart}() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off -- a session's plan from when the tables were empty would read all of them
AS $apart$
BEGIN
    IF (SELECT count(*) FROM (SELECT FROM ONLY {embedding}
                               WHERE chunk_hash = NEW.chunk_hash AND (key, chunk_no) <> (NEW.key, NEW.chunk_no)
                               LIMIT {copies}) AS copy) < {copies} THEN
        DELETE FROM {repeated} WHERE key = NEW.key AND chunk_no = NEW.chunk_no;
        RETURN NEW;
    END IF;
    DELETE FROM ONLY {embedding} WHERE key = NEW.key AND chunk_no = NEW.chunk_no;
    INSERT INTO {repeated} AS e SELECT NEW.*
    ON CONFLICT (key, chunk_no) DO UPDATE
       SET chunk_hash = excluded.chunk_hash, chunk_text = excluded.chunk_text, embedding = excluded.embedding,
           embedded_at = excluded.embedded_at
     WHERE e.chunk_hash <> excluded.chunk_hash;
    RETURN NULL;
END $apart$;
CREATE TRIGGER set_apart BEFORE INSERT ON {embedding} FOR EACH ROW EXECUTE FUNCTION {set_apart}()

-- name: set_apart
-- Of a table that was filled before; nobody writes it meanwhile.
WITH copies AS (
    SELECT key, chunk_no, row_number() OVER (PARTITION BY chunk_hash) AS number FROM ONLY {embedding}
     WHERE chunk_hash IN (SELECT chunk_hash FROM ONLY {embedding} GROUP BY chunk_hash HAVING count(*) > {copies})),
moved AS (
    DELETE FROM ONLY {embedding} e USING copies c
     WHERE e.key = c.key AND e.chunk_no = c.chunk_no AND c.number > {copies} RETURNING e.*)
INSERT INTO {repeated} SELECT * FROM moved

-- name: drop_embedding
DROP TABLE IF EXISTS {embedding}, {repeated};
DROP FUNCTION IF EXISTS {set_apart}()

-- name: index_hnsw
CREATE INDEX {concurrently} {index} ON {embedding} USING hnsw (embedding {operators})
  WITH (m = {m}, ef_construction = {ef_construction})

-- name: hnsw_indexes
-- HNSW indexes of a table; where one does not say what it was made with, it is pgvector's own default.
SELECT c.relname AS name, i.indisvalid AND i.indisready AS valid, pg_relation_size(c.oid) AS bytes,
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions) WHERE option_name = 'm')::int, 16) AS m,
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions)
                  WHERE option_name = 'ef_construction')::int, 64) AS ef_construction
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam AND a.amname = 'hnsw'
 WHERE i.indrelid = to_regclass(%(table)s) ORDER BY c.relname

-- name: has_embeddings
SELECT EXISTS (SELECT FROM {embedding})

-- name: unset_options
-- Those of a table's storage parameters that nobody has set: what somebody has set stays.
SELECT o.name, o.value FROM unnest(%(names)s::text[], %(values)s::text[]) AS o(name, value)
 WHERE o.name <> ALL (SELECT option_name FROM pg_class c, pg_options_to_table(c.reloptions)
                       WHERE c.oid = to_regclass(%(table)s))

-- name: patience
SET LOCAL lock_timeout = '2s'

-- name: patience_ends
SET LOCAL lock_timeout TO DEFAULT

-- name: set_option
-- It waits for no reader and no writer.
ALTER TABLE {table} SET ({option} = {value})

-- name: create_view
-- Applications depend on this; metadata columns are last, so that new ones append. A dead letter is stale until it is
-- replayed or waived. `stale_since`: the oldest commit that is not reflected; NULL where only a load's row waits. The vector has no dimension here, so that a generation of another one can take its place; the
-- index is used all the same.
CREATE OR REPLACE VIEW {view} AS
SELECT {keys}, e.chunk_no, e.chunk_text, e.embedding::{type}, {model}::text AS model, r._committed_at AS source_committed_at,
       e.embedded_at,
       EXISTS (SELECT 1 FROM upwell.pending p
                WHERE p.collection = {collection} AND p.generation = {generation} AND p.key = e.key)
       OR EXISTS (SELECT 1 FROM upwell.dead_letter d
                   WHERE d.collection = {collection} AND d.key = e.key AND d.closed_at IS NULL
                     AND coalesce(d.generation, {generation}) = {generation}) AS is_stale,
       least((SELECT least(p.pending_since, p.next_since) FROM upwell.pending p
               WHERE p.collection = {collection} AND p.generation = {generation} AND p.key = e.key),
             (SELECT min(d.committed_at) FROM upwell.dead_letter d
               WHERE d.collection = {collection} AND d.key = e.key AND d.closed_at IS NULL
                 AND coalesce(d.generation, {generation}) = {generation})) AS stale_since{metadata}
  FROM {embedding} e JOIN {record} r ON r._key = e.key

-- name: drop_search
DROP FUNCTION IF EXISTS {function}(text, vector, int, int)

-- name: load_pgvector
-- Its library brings its settings along; of a session that has not loaded it yet only a superuser may name them.
SELECT '[0]'::vector

-- name: create_search
-- The planner settings that an application would forget, and a check that the query vector is of the live model; again
-- where the vectors are read, as a switch may come between. Replaced, not dropped, in a switch: a statement that has found the
-- function would lose it.
CREATE OR REPLACE FUNCTION {function}(for_model text, query vector, k int DEFAULT 10, ef_search int DEFAULT {ef_search})
RETURNS TABLE ({returns}, score double precision)
LANGUAGE plpgsql STABLE
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.ef_search = {ef_search} -- both end with the function, what is set within it too
AS $search$
#variable_conflict use_column
DECLARE
    live_model text;
    nearest {view}[];
BEGIN
    IF for_model IS DISTINCT FROM {model} THEN
        RAISE EXCEPTION 'the live model of % is %, the query vector is of %', {collection}, {model}, for_model
              USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM set_config('hnsw.ef_search', least(greatest(ef_search, k), 1000)::text, true);
    -- "V" is a name that no column can have.
    EXECUTE 'SELECT array(SELECT "V" FROM {view} "V" WHERE model = $3 ORDER BY embedding <=> $1 LIMIT $2)'
       INTO nearest USING query, k, for_model;
    IF cardinality(nearest) < k THEN
        -- The graph may have no way to rows that are there (ADR 0023). Not a part of the statement above: its cost would
        -- have each search compiled. `+ 0` keeps the index out.
        EXECUTE 'SELECT array(SELECT "V" FROM {view} "V" WHERE model = $3 ORDER BY (embedding <=> $1) + 0 LIMIT $2)'
           INTO nearest USING query, k, for_model;
    END IF;
    RETURN QUERY EXECUTE
        'SELECT {selected}, 1 - (embedding <=> $1) FROM unnest($2) ORDER BY embedding <=> $1'
        USING query, nearest;
    IF NOT FOUND THEN
        SELECT v.model INTO live_model FROM {view} v LIMIT 1;
        IF live_model <> for_model THEN
            RAISE EXCEPTION 'the live model of % is now %, the query vector is of %', {collection}, live_model, for_model
                  USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END IF;
END $search$

-- name: grant_view
GRANT SELECT ON {view} TO upwell_reader

-- name: grant_search
GRANT EXECUTE ON FUNCTION {function}(text, vector, int, int) TO upwell_reader

-- name: view_columns
-- Of a view that is there already, in order, and whether the type of each has no modifier.
SELECT attname, atttypmod = -1 FROM pg_attribute
 WHERE attrelid = to_regclass(%(view)s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum

-- name: lock_view
-- The view before its tables, as a query that reads it: the other way round the two could deadlock.
LOCK TABLE {view} IN ACCESS EXCLUSIVE MODE

-- name: drop_view
DROP VIEW {view}

-- name: grant_worker
-- What a worker does and no more: it changes no generation, no migration, and no audit row.
GRANT SELECT ON ALL TABLES IN SCHEMA upwell TO upwell_worker;
GRANT INSERT, UPDATE, DELETE ON upwell.position, upwell.pending, upwell.dead_letter, upwell.repair, upwell.counter,
      upwell.delay, upwell.worker, upwell.watermark, upwell.evaluation, upwell.freshness_history, upwell.slow_change,
      upwell.blocked, upwell.monitor, upwell.canary_seen, upwell.gap, upwell.canary_reference TO upwell_worker;
GRANT INSERT ON upwell.audit TO upwell_worker;
GRANT DELETE ON upwell.topic TO upwell_worker;
GRANT UPDATE (fence_lineage, fence_lsn, load_state, load_detail) ON upwell.collection TO upwell_worker;
GRANT EXECUTE ON FUNCTION upwell.make_audit_partitions(int, int), upwell.drop_canary_audit(),
      upwell.sketch_bins(jsonb) TO upwell_worker

-- name: grant_worker_collection
GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO upwell_worker

-- name: generations
-- Those that are fed, the live one first.
SELECT collection, number, fingerprint, model, dimension, template, max_tokens, overlap_tokens, state
  FROM upwell.generation WHERE collection = %(collection)s AND state <> 'dropped' ORDER BY state <> 'live', number

-- name: upsert_collection
-- The canary's table has nothing to load.
INSERT INTO upwell.collection
       (name, table_name, key_columns, threshold_seconds, load_state, index_m, index_ef_construction, index_ef_search,
        index_build, index_type)
VALUES (%(name)s, %(table)s, %(key)s, %(threshold_seconds)s,
        CASE WHEN %(name)s = 'canary' THEN 'complete' ELSE 'incomplete' END,
        %(m)s, %(ef_construction)s, %(ef_search)s, %(build)s, %(type)s)
ON CONFLICT (name) DO UPDATE
   SET threshold_seconds = excluded.threshold_seconds, index_m = excluded.index_m,
       index_ef_construction = excluded.index_ef_construction, index_ef_search = excluded.index_ef_search,
       index_build = excluded.index_build
RETURNING table_name, key_columns, (xmax = 0) AS created, index_type

-- name: create_watermark
INSERT INTO upwell.watermark (collection) VALUES (%(name)s) ON CONFLICT DO NOTHING

-- name: move_deadlines
-- A changed threshold holds for what waits already, as it does in every report. What a worker holds just now is nearly
-- done; waiting for it could deadlock.
UPDATE upwell.pending p SET deadline = w.deadline
  FROM (SELECT p.generation, p.key, p.pending_since + c.threshold_seconds * interval '1 second' AS deadline
          FROM upwell.pending p JOIN upwell.collection c ON c.name = p.collection
         WHERE p.collection = %(collection)s AND p.lane = 'live' AND p.token IS NULL
           AND p.deadline <> p.pending_since + c.threshold_seconds * interval '1 second'
           FOR UPDATE OF p SKIP LOCKED) AS w
 WHERE p.collection = %(collection)s AND p.generation = w.generation AND p.key = w.key

-- name: insert_generation
INSERT INTO upwell.generation
       (collection, number, fingerprint, model, dimension, template, max_tokens, overlap_tokens, state, live_at)
VALUES (%(collection)s, %(number)s, %(fingerprint)s, %(model)s, %(dimension)s, %(template)s, %(max_tokens)s,
        %(overlap_tokens)s, %(state)s, CASE WHEN %(state)s = 'live' THEN clock_timestamp() END)

-- name: collection_names
-- All that the sink knows, in the order in which their locks are taken.
SELECT name FROM upwell.collection ORDER BY name

-- name: removed_counts
-- What goes with a collection: rows at the source as stored, vectors are counted by generation.
SELECT (SELECT count(*) FROM {record} WHERE NOT _deleted),
       (SELECT count(*) FROM upwell.dead_letter WHERE collection = %(collection)s AND closed_at IS NULL)

-- name: count_embeddings
SELECT count(*) FROM {embedding}

-- name: drop_collection_view
DROP VIEW IF EXISTS {view}

-- name: drop_table
DROP TABLE IF EXISTS {table}

-- name: forget_positions
-- Of topics that are not recorded any more. A worker that had the topic when it was forgotten may have read it once more and
-- set positions anew: rows of a topic of the name that is made later would be taken for rows that were taken in.
DELETE FROM upwell.position p WHERE NOT EXISTS (SELECT FROM upwell.topic t WHERE t.topic = p.topic)

-- name: audit_removed
INSERT INTO upwell.audit (collection, action, detail)
VALUES (%(collection)s, 'collection_removed',
        jsonb_build_object('records', %(records)s::bigint, 'vectors', %(vectors)s::bigint, 'by', session_user))

-- name: migrations
SELECT number, name FROM upwell.migration ORDER BY number

-- name: record_migration
INSERT INTO upwell.migration (number, name) VALUES (%(number)s, %(name)s)

-- name: has_migrations
SELECT to_regclass('upwell.migration') IS NOT NULL

-- name: try_migrate
SELECT pg_try_advisory_lock(hashtext('upwell.migrate'), 0)

-- name: unlock_migrate
SELECT pg_advisory_unlock(hashtext('upwell.migrate'), 0)

-- name: server
SELECT current_setting('server_version_num')::int,
       (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
       EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'vector')

-- name: role_exists
SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = %(role)s)
