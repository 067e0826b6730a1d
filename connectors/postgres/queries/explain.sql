-- All that the sink holds of one key. Reads only.

-- name: collection
SELECT key_columns, table_name FROM upwell.collection WHERE name = %(collection)s

-- name: record
SELECT _deleted AS deleted, _row AS row, encode(_text_hash, 'hex') AS text_hash, _lineage AS lineage, _offset AS "offset",
       _streamed AS streamed, _lsn AS lsn, _transaction_id AS transaction_id, _committed_at AS committed_at,
       _taken_in_at AS taken_in_at
  FROM {record} WHERE _key = %(key)s

-- name: generations
SELECT number, state, model, template, created_at FROM upwell.generation
 WHERE collection = %(collection)s AND state <> 'dropped' ORDER BY number

-- name: chunks
SELECT chunk_no, chunk_text, encode(chunk_hash, 'hex') AS chunk_hash, embedded_at FROM {embedding}
 WHERE key = %(key)s ORDER BY chunk_no

-- name: pending
-- Since when search does not show the newest text, who has claimed it, and what went wrong.
SELECT generation, lane, least(pending_since, next_since) AS pending_since, deadline, attempts, last_error,
       CASE WHEN lease_until > clock_timestamp() THEN slot END AS claimed_by, lineage, "offset"
  FROM upwell.pending WHERE collection = %(collection)s AND key = %(key)s ORDER BY generation

-- name: dead_letters
SELECT id, stage, topic, partition, "offset", error_class, error, created_at, closed_at, closed_by,
       value_bytes IS NOT NULL OR key_bytes IS NOT NULL AS holds_bytes
  FROM upwell.dead_letter WHERE collection = %(collection)s AND key = %(key)s ORDER BY id

-- name: in_doubt
SELECT requested_at, asked, looked_at FROM upwell.repair WHERE collection = %(collection)s AND key = %(key)s

-- name: audit
-- The newest first. `topic_there`: false for one of an ended lineage, which is deleted.
SELECT EXISTS (SELECT FROM upwell.position p WHERE p.topic = audit.topic) AS topic_there, at, action, topic, partition, first_offset AS "offset", lineage, lsn, transaction_id, committed_at, generation,
       encode(text_hash, 'hex') AS text_hash, chunks, detail
  FROM upwell.audit WHERE collection = %(collection)s AND key = %(key)s ORDER BY at DESC LIMIT %(limit)s

-- name: audited
SELECT count(*) AS rows FROM upwell.audit WHERE collection = %(collection)s AND key = %(key)s

-- name: vacuumed
-- Deleted rows stay in the files until a vacuum; an empty file holds none.
SELECT relname AS name, greatest(last_vacuum, last_autovacuum) AS at FROM pg_stat_user_tables
 WHERE schemaname = 'upwell' AND relname = ANY(%(tables)s::text[]) AND pg_relation_size(relid) > 0 ORDER BY relname
