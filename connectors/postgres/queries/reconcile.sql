-- Source and sink compared. `{rows}` are a side's rows as (k, r): the text of the key and that of the row, made of the
-- same types in both databases; `name` is the canonical key. Nothing but the last blocks writes.

-- name: session
-- The same values print the same on both sides. A long read may take its time, and is no transaction that writes.
SELECT set_config(name, value, false) FROM (VALUES
       ('TimeZone', 'UTC'), ('DateStyle', 'ISO, MDY'), ('IntervalStyle', 'postgres'), ('extra_float_digits', '1'),
       ('bytea_output', 'hex'), ('statement_timeout', '0'), ('jit', 'off'), ('cursor_tuple_fraction', '1')) AS s(name, value)

-- name: source_columns
-- What the columns really are: an enum, or a type of an extension, is text in the sink.
SELECT a.attname AS name, t.typtype = 'd' AS domain,
       CASE WHEN coalesce(e.typnamespace, t.typnamespace) <> 'pg_catalog'::regnamespace THEN coalesce(e.typname, t.typname) END
       AS foreign_type
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
 WHERE a.attrelid = %(table)s::text::regclass AND a.attnum > 0 AND NOT a.attisdropped

-- name: troubled_json
-- Whether a json column holds what jsonb cannot: NUL, or half a surrogate.
SELECT EXISTS (SELECT FROM {table} t WHERE {column}::text ~
       '\\u0000|\\u[dD][89aAbB][0-9a-fA-F]{{2}}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB][0-9a-fA-F]{{2}})\\u[dD][c-fC-F]')

-- name: source_rows
SELECT {key} AS k, {row} AS r, {canonical} AS name FROM {table} t

-- name: sink_rows
-- The key is that of the record; the row is what was taken in. What the record's own columns say besides, which is
-- what applications see, makes it another row where it differs.
SELECT {key} AS k, {row} AS r, t._key AS name
  FROM {record} t CROSS JOIN LATERAL jsonb_to_record(t._row) AS p({types}) WHERE NOT t._deleted

-- name: checksums
-- A range is the first 12 bits of the key's MD5.
SELECT ('x' || left(md5(k), 3))::bit(12)::int, count(*), bit_xor(('x' || left(md5(r), 16))::bit(64)::bigint)
  FROM ({rows}) AS x GROUP BY 1

-- name: keyed
-- The rows of some ranges, in an order that no collation has a say in.
SELECT md5(k), name, md5(r) FROM ({rows}) AS x
 WHERE ('x' || left(md5(k), 3))::bit(12)::int = ANY(%(ranges)s::int[]) ORDER BY md5(k)::uuid

-- name: source_keys
SELECT name, md5(r) FROM ({rows} WHERE {keys}) AS x

-- name: visible
-- Which transactions the snapshot sees; a commit is in the stream before it is visible (see look_for in source.sql).
SELECT x.xid IS NULL OR x.whole < 0 OR pg_visible_in_snapshot(x.whole::text::xid8, s.now)
  FROM (SELECT pg_current_snapshot() AS now, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) AS s
 CROSS JOIN LATERAL (SELECT u.number, u.xid, s.next - ((s.next - u.xid) & 4294967295) AS whole
                       FROM unnest(%(transactions)s::bigint[]) WITH ORDINALITY AS u(xid, number)) AS x
 ORDER BY x.number

-- name: inserted_lsn
-- What was committed without waiting for the disk is visible before it is written, so not the written end of the log.
SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint

-- name: stored
SELECT t._key, t._lineage, t._offset, t._deleted, CASE WHEN NOT t._deleted THEN md5({row}) END, t._transaction_id,
       EXISTS (SELECT FROM upwell.repair d WHERE d.collection = %(collection)s AND d.key = t._key
                  AND (d.lineage, d."offset") = (t._lineage, t._offset))
  FROM {record} t LEFT JOIN LATERAL jsonb_to_record(t._row) AS p({types}) ON true
 WHERE t._key = ANY(%(keys)s::text[])

-- name: notes
-- What is known to be open of keys.
SELECT key, 'open dead letter ' || id FROM upwell.dead_letter
 WHERE collection = %(collection)s AND key = ANY(%(keys)s::text[]) AND closed_at IS NULL
UNION ALL
SELECT key, 'to be looked for at the source' FROM upwell.repair
 WHERE collection = %(collection)s AND key = ANY(%(keys)s::text[])
 ORDER BY 1, 2

-- name: collection
-- Where it stands: nothing is compared beside a load, nor across the beginning of a lineage.
SELECT c.load_state, c.table_name, c.key_columns, (SELECT max(number) FROM upwell.lineage) AS lineage
  FROM upwell.collection c WHERE c.name = %(collection)s

-- name: working
-- Workers that live.
SELECT count(*) FROM upwell.worker WHERE seen_at > clock_timestamp() - %(silent_seconds)s * interval '1 second'

-- name: settled
-- A live record of whose text nothing is under way in the generation, nor known to have failed.
NOT r._deleted
   AND NOT EXISTS (SELECT FROM upwell.pending p
                    WHERE p.collection = %(collection)s AND p.generation = %(generation)s AND p.key = r._key)
   AND NOT EXISTS (SELECT FROM upwell.dead_letter d
                    WHERE d.collection = %(collection)s AND d.closed_at IS NULL AND d.stage = 'embed'
                      AND d.generation = %(generation)s AND d.key = r._key)

-- name: without_vector
SELECT r._key, r._lineage, r._offset, r._row FROM {record} r
 WHERE {settled} AND NOT EXISTS (SELECT FROM {embedding} e WHERE e.key = r._key)

-- name: vectors_without_record
SELECT DISTINCT e.key FROM {embedding} e
 WHERE NOT EXISTS (SELECT FROM {record} r WHERE r._key = e.key AND NOT r._deleted)
 ORDER BY 1

-- name: sampled
-- Other keys each time.
SELECT r._key FROM {record} r
 WHERE {settled} AND EXISTS (SELECT FROM {embedding} e WHERE e.key = r._key)
 ORDER BY random() LIMIT %(limit)s

-- name: alike
-- Keys with one of these chunks: the embedder would take the vector of any of them.
SELECT DISTINCT key FROM {embedding} WHERE chunk_hash = ANY(%(hashes)s::bytea[])

-- name: documents
SELECT r._key, r._lineage, r._offset, r._row, c.texts, c.vectors FROM {record} r
 CROSS JOIN LATERAL (SELECT coalesce(array_agg(e.chunk_text ORDER BY e.chunk_no), '{{}}') AS texts,
                            coalesce(array_agg(e.embedding::text ORDER BY e.chunk_no), '{{}}') AS vectors
                       FROM {embedding} e WHERE e.key = r._key) AS c
 WHERE {settled} AND r._key = ANY(%(keys)s::text[])

-- name: ask_repairs
-- The version that is stored, also of a marker: the row of the re-read is let in for it alone. Of a key without a record
-- it says to a load that single rows are under way; `asked` before the signal is sent, or its row would be ignored.
INSERT INTO upwell.repair AS r (collection, key, lineage, "offset", asked, looked_at)
SELECT %(collection)s, u.key, u.lineage, u."offset", true, clock_timestamp()
  FROM unnest(%(keys)s::text[], %(lineages)s::int[], %(offsets)s::bigint[]) AS u(key, lineage, "offset")
ON CONFLICT (collection, key) DO UPDATE
   SET lineage = excluded.lineage, "offset" = excluded."offset", asked = true, looked_at = excluded.looked_at

-- name: lock_ghosts
-- Still in the version that the source was proven not to have, and without a dead letter that may be of it: replayed, it
-- would bring back what was removed here (H29).
SELECT _key FROM {record} r
 WHERE NOT _deleted
   AND (_key, _lineage, _offset) IN (SELECT * FROM unnest(%(keys)s::text[], %(lineages)s::int[], %(offsets)s::bigint[]))
   AND NOT EXISTS (SELECT FROM upwell.dead_letter d
                    WHERE d.collection = %(collection)s AND d.closed_at IS NULL AND d.stage = 'intake'
                      AND (d.key = r._key OR d.key IS NULL) AND d.lineage = r._lineage)
 ORDER BY _key FOR UPDATE

-- name: lock_to_embed
-- Records that are still in the version that was looked at, of whose text nothing is under way.
SELECT r._key, r._lineage, r._offset FROM {record} r
 WHERE {settled}
   AND (r._key, r._lineage, r._offset) IN (SELECT * FROM unnest(%(keys)s::text[], %(lineages)s::int[], %(offsets)s::bigint[]))
 ORDER BY r._key FOR UPDATE

-- name: remove_orphans
-- Alone on the collection: an embedder must not find a vector that goes just now.
DELETE FROM {embedding} e
 WHERE e.key = ANY(%(keys)s::text[]) AND NOT EXISTS (SELECT FROM {record} r WHERE r._key = e.key AND NOT r._deleted)

-- name: audit
INSERT INTO upwell.audit (collection, action, count, detail)
VALUES (%(collection)s, 'reconciled', %(count)s, %(detail)s::jsonb || jsonb_build_object('by', session_user))
