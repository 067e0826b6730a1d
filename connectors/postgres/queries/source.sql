-- The source database: what upwell reads of its catalog, and its own few tables in schema `upwell`.
-- Runs on Postgres 14 or newer without superuser.

-- name: server
-- Version and settings that logical decoding needs.
SELECT current_setting('server_version_num')::int AS version,
       current_setting('wal_level') AS wal_level,
       current_setting('server_encoding') AS encoding,
       current_user AS role;

-- name: table
-- One table: kind, persistence, replica identity (d, n, f, i), and whether its primary key is deferrable.
SELECT c.oid::bigint AS oid, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       c.relreplident::text AS identity,
       EXISTS (SELECT FROM pg_catalog.pg_index i
                WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate) AS deferrable
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(table)s;

-- name: columns
-- Columns in order. `type` is one that every Postgres has: enums and types of extensions are text. `toastable` = may be stored out of line;
-- `enum`: also an array of them; `composed`: a composite type or multirange, or an array of one or of a domain; `key_position` counts from 1 within the primary key.
SELECT a.attname AS name,
       CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod)
            WHEN coalesce(e.typnamespace, t.typnamespace) = 'pg_catalog'::regnamespace
            THEN pg_catalog.format_type(a.atttypid, a.atttypmod)
            WHEN e.oid IS NOT NULL THEN 'text[]' ELSE 'text' END AS type,
       a.attnotnull AS not_null,
       a.attlen = -1 AND a.attstorage IN ('x', 'e') AS toastable,
       a.attgenerated <> '' AS generated,
       a.attgenerated = 'v' AS virtual,
       coalesce(e.typtype, t.typtype) = 'e' AS enum,
       coalesce(e.typtype, t.typtype) IN ('c', 'm') OR coalesce(e.typtype = 'd', false) AS composed,
       array_position(i.indkey::int2[], a.attnum) + 1 - array_lower(i.indkey::int2[], 1) AS key_position
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
  LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum;

-- name: capturable_tables
-- Ordinary tables with a primary key that are no system's and not ours.
SELECT n.nspname || '.' || c.relname AS name
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'upwell')
   AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
 ORDER BY 1;

-- name: service_tables
-- Which tables of schema `upwell` exist already.
SELECT c.relname AS name
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'upwell' AND c.relkind = 'r';

-- name: publication
-- A row if the publication exists: what it publishes, and whether it takes all tables. `generated`: from Postgres 18
-- on, an UPDATE of a table with a generated column and REPLICA IDENTITY FULL fails where they are not published.
SELECT puballtables AS all_tables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AS complete,
       current_setting('server_version_num')::int < 180000 OR to_jsonb(p) ->> 'pubgencols' = 's' AS generated
  FROM pg_catalog.pg_publication p
 WHERE pubname = %(publication)s;

-- name: published_tables
-- Tables in the publication.
SELECT schemaname || '.' || tablename AS name
  FROM pg_catalog.pg_publication_tables
 WHERE pubname = %(publication)s;

-- name: unmarked_tables
-- Tables in the publication whose addition is not marked by a transaction that began after it.
SELECT p.schemaname || '.' || p.tablename AS name
  FROM pg_catalog.pg_publication_tables p
  LEFT JOIN upwell.published m
    ON m.publication = p.pubname AND m.table_name = p.schemaname || '.' || p.tablename
 WHERE p.pubname = %(publication)s AND m.after_xid IS NULL;

-- name: unsettled_tables
-- Tables that transactions older than their addition to the publication may still be writing (H25).
SELECT table_name AS name
  FROM upwell.published
 WHERE publication = %(publication)s AND table_name = ANY (%(tables)s)
   AND (after_xid IS NULL OR after_xid >= pg_snapshot_xmin(pg_current_snapshot()));

-- name: oldest_transaction
-- Whom an unsettled table waits for: the oldest open transaction that has written something.
SELECT pid, coalesce(application_name, '') AS application, (now() - xact_start)::text AS age
  FROM pg_catalog.pg_stat_activity
 WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
 ORDER BY xact_start
 LIMIT 1;

-- name: slot
-- The replication slot; confirmed is NULL until its start point is consistent.
SELECT slot_name AS name, active, confirmed_flush_lsn IS NOT NULL AS ready, wal_status
  FROM pg_catalog.pg_replication_slots
 WHERE slot_name = %(slot)s AND database = current_database();

-- name: slot_state
-- What the source keeps for the connector, and how much more it may be before the slot is lost (NULL: without limit).
SELECT slot_name AS name, active, coalesce(wal_status, '') AS wal_status,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS behind_bytes, safe_wal_size AS safe_bytes
  FROM pg_catalog.pg_replication_slots
 WHERE slot_name = %(slot)s AND database = current_database();

-- name: drop_slot
-- Nobody may be reading it.
SELECT pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots
 WHERE slot_name = %(slot)s AND database = current_database() AND NOT active;

-- name: lost_position
-- What the source says of a slot and of its own log, positions in bytes. Read before the connector's stored position.
SELECT s.slot_name IS NOT NULL AS there, coalesce(s.wal_status, '') AS wal_status,
       (s.confirmed_flush_lsn - '0/0')::bigint AS confirmed, (pg_current_wal_lsn() - '0/0')::bigint AS wal_end
  FROM (VALUES (1)) one
  LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = %(slot)s AND s.database = current_database();

-- name: wal_position
-- The end of the write-ahead log, in bytes as `source.lsn` counts them.
SELECT (pg_current_wal_lsn() - '0/0')::bigint AS lsn;

-- name: beat
-- The next canary. Its row is locked, so the numbers are in the order of commits, whoever else beats; the clock is read
-- before the row is in the write-ahead log.
INSERT INTO upwell.canary AS c (id, nonce, at) VALUES (1, '1', clock_timestamp())
ON CONFLICT (id) DO UPDATE
   SET nonce = CASE WHEN c.nonce ~ '^[0-9]{1,18}$' THEN (c.nonce::bigint + 1)::text ELSE '1' END, at = clock_timestamp()
RETURNING nonce::bigint AS number, at, clock_timestamp() AS now;

-- name: placeholder
-- The deployment's stand-in for values that Debezium does not have.
SELECT placeholder FROM upwell.deployment WHERE name = %(name)s;

-- name: signal
-- A signal to Debezium; asked again with the same id it is not sent twice.
INSERT INTO upwell.signal (id, type, data) VALUES (%(id)s, %(type)s, %(data)s) ON CONFLICT (id) DO NOTHING;

-- name: forget_signal
DELETE FROM upwell.signal WHERE id = %(id)s;

-- name: signal_sent
-- Whether a signal was inserted.
SELECT 1 AS sent FROM upwell.signal WHERE id = %(id)s;

-- name: look_for
-- Which keys are there, and whether their transactions are visible to the same snapshot: a commit is in the stream
-- before it is visible. The stream's 32 bits of a transaction id are completed to the newest one that began.
SELECT k.there, x.xid IS NULL OR x.whole < 0 OR pg_visible_in_snapshot(x.whole::text::xid8, s.now) AS visible
  FROM (SELECT pg_current_snapshot() AS now) s,
       (VALUES {keys}) k(number, there)
  JOIN LATERAL (
       SELECT ({transactions}::bigint[])[k.number] AS xid,
              n.next - ((n.next - ({transactions}::bigint[])[k.number]) & 4294967295) AS whole
         FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) n) x ON true
 ORDER BY k.number;
