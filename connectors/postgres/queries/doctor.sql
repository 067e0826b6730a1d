-- What `upwell doctor` asks of source and sink. Reads only, as any user: what a user may not see is NULL or said so.
-- Runs on Postgres 14 or newer.

-- name: read_only
-- Whatever a check does by mistake, nothing is written.
SET default_transaction_read_only = on

-- name: server
-- Version, the clock, and whether it can be written to at all.
SELECT current_setting('server_version_num')::int AS version,
       current_setting('server_version') AS version_name,
       current_setting('wal_level') AS wal_level,
       current_setting('server_encoding') AS encoding,
       pg_is_in_recovery() AS standby,
       current_user::text AS role,
       current_database()::text AS database,
       clock_timestamp() AS now

-- name: role
-- One role: whether it may read the write-ahead log (managed servers grant it by membership), and its limits.
SELECT r.rolname::text AS name, r.rolsuper AS superuser, r.rolconnlimit AS connection_limit,
       r.rolsuper OR r.rolreplication
       OR EXISTS (SELECT FROM pg_catalog.pg_roles g
                   WHERE g.rolname IN ('rds_replication') AND pg_has_role(r.oid, g.oid, 'MEMBER')) AS replication,
       r.rolsuper OR r.rolcreaterole AS creates_roles,
       has_database_privilege(r.oid, current_database(), 'CREATE') AS creates_schemas,
       has_database_privilege(r.oid, current_database(), 'CONNECT') AS connects,
       pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE') AS sees_all
  FROM pg_catalog.pg_roles r
 WHERE r.rolname = %(role)s

-- name: replication
-- Room for one more slot and its sender. A sender of a slot that is read is one already.
SELECT current_setting('max_replication_slots')::int AS slots,
       (SELECT count(*) FROM pg_catalog.pg_replication_slots)::int AS slots_used,
       current_setting('max_wal_senders')::int AS senders,
       (SELECT count(*) FROM pg_catalog.pg_stat_replication)::int AS senders_used

-- name: keep
-- How much write-ahead log a slot may keep (MB, -1 without limit), and after how many seconds an unread slot is dropped.
SELECT (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mb,
       (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'idle_replication_slot_timeout') AS idle_seconds

-- name: slots
-- Slots of a deployment, of all its lineages.
SELECT slot_name::text AS name, active, wal_status, safe_wal_size AS safe_bytes,
       CASE WHEN NOT pg_is_in_recovery()
            THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint END AS retained_bytes
  FROM pg_catalog.pg_replication_slots
 WHERE slot_name ~ %(pattern)s AND database = current_database()
 ORDER BY slot_name

-- name: table_rights
-- What a role may do with one table; NULL where there is no such table.
SELECT has_schema_privilege(%(role)s, n.oid, 'USAGE') AS uses_schema,
       has_table_privilege(%(role)s, c.oid, 'SELECT') AS selects,
       pg_has_role(c.relowner, 'USAGE') AS owns,
       pg_get_userbyid(c.relowner)::text AS owner
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: service_rights
-- Rights on upwell's own tables at the source that a role lacks.
SELECT w.relation || ' ' || w.right AS missing
  FROM (VALUES ('heartbeat', 'SELECT'), ('heartbeat', 'INSERT'), ('heartbeat', 'UPDATE'),
               ('signal', 'SELECT'), ('signal', 'INSERT'), ('signal', 'DELETE'),
               ('canary', 'SELECT'), ('deployment', 'SELECT'), ('published', 'SELECT')) w(relation, "right")
  JOIN pg_catalog.pg_class c ON c.relname = w.relation
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'upwell'
 WHERE NOT (has_schema_privilege(%(role)s, n.oid, 'USAGE') AND has_table_privilege(%(role)s, c.oid, w.right))

-- name: long_transactions
-- With an id a transaction holds slots back, with a snapshot only VACUUM. Those that this user may not see have no start.
SELECT pid, coalesce(application_name, '') AS application, usename::text AS role,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_seconds, backend_xid IS NOT NULL AS writes
  FROM pg_catalog.pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
   AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)
   AND xact_start < clock_timestamp() - %(older_seconds)s * interval '1 second'
 ORDER BY xact_start
 LIMIT 10

-- name: prepared_transactions
-- They stay until somebody ends them, over restarts, too.
SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age_seconds
  FROM pg_catalog.pg_prepared_xacts
 WHERE database = current_database() AND prepared < clock_timestamp() - %(older_seconds)s * interval '1 second'
 ORDER BY prepared
 LIMIT 10

-- name: timeouts
-- Milliseconds of this user's timeouts; 0 is none, and an older server has not all of them.
SELECT name, setting::bigint AS milliseconds
  FROM pg_catalog.pg_settings
 WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout',
                'transaction_timeout') AND setting::bigint > 0
 ORDER BY name

-- name: data_directory
-- Where the server stores; only a superuser or a member of pg_read_all_settings may know.
SELECT CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END AS path,
       current_setting('port')::int AS port

-- name: wal_folder
-- Bytes of write-ahead log; NULL for a user who may not look.
SELECT has_function_privilege('pg_catalog.pg_ls_waldir()', 'EXECUTE') AS permitted

-- name: wal_bytes
SELECT sum(size)::bigint AS bytes FROM pg_ls_waldir()

-- name: vector
-- The extension, as installed here and as it could be.
SELECT (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector') AS installed,
       (SELECT default_version FROM pg_catalog.pg_available_extensions WHERE name = 'vector') AS available,
       coalesce((SELECT bool_or(trusted) FROM pg_catalog.pg_available_extension_versions WHERE name = 'vector'), false)
           AS trusted

-- name: missing_roles
SELECT w.name FROM unnest(%(roles)s::text[]) AS w(name)
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = w.name)

-- name: member_of
-- Which of these roles this user may act as.
SELECT rolname::text AS name FROM pg_catalog.pg_roles
 WHERE rolname = ANY (%(roles)s::text[]) AND pg_has_role(oid, 'USAGE')

-- name: sink_schema
-- Whether there is one, and whose it is.
SELECT to_regclass('upwell.migration') IS NOT NULL AS there, pg_get_userbyid(n.nspowner)::text AS owner,
       pg_has_role(n.nspowner, 'USAGE') AS owns, has_schema_privilege(n.oid, 'USAGE') AS uses
  FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'upwell'

-- name: migrations
SELECT number FROM upwell.migration ORDER BY number

-- name: worker_rights
-- Tables that a worker writes and this user may not.
SELECT w.relation AS missing
  FROM (VALUES ('position'), ('pending'), ('dead_letter'), ('repair'), ('counter'), ('delay'), ('worker'), ('audit'))
       w(relation)
 WHERE NOT has_table_privilege('upwell.' || w.relation, 'INSERT')
UNION ALL
SELECT 'topic' WHERE NOT has_table_privilege('upwell.topic', 'DELETE')

-- name: generations
-- Those that are fed, the live one of a collection first.
SELECT collection, number, fingerprint, model, dimension, template, max_tokens, overlap_tokens, state
  FROM upwell.generation WHERE state <> 'dropped' ORDER BY collection, state <> 'live', number

-- name: connections
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity
         WHERE backend_type = 'client backend' AND coalesce(application_name, '') NOT LIKE 'upwell%%')::int AS others

-- name: live_workers
-- Workers that said lately that they live; a taken slot lock is a living one, too.
SELECT slot, host, pid, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seen_seconds
  FROM upwell.worker WHERE seen_at > clock_timestamp() - %(within_seconds)s * interval '1 second' ORDER BY slot

-- name: audit_partitions
-- Days from today on that have none, and rows that therefore went elsewhere.
SELECT array_agg(to_char(day, 'YYYY-MM-DD')) FILTER (
           WHERE to_regclass('upwell.audit_' || to_char(day, 'YYYYMMDD')) IS NULL) AS missing
  FROM generate_series((clock_timestamp() AT TIME ZONE 'UTC')::date,
                       (clock_timestamp() AT TIME ZONE 'UTC')::date + 1, interval '1 day') AS day

-- name: vacuum
-- Whether `pending` is kept small: its rows live for seconds.
SELECT current_setting('autovacuum')::bool AS autovacuum,
       coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false) AS disabled,
       coalesce(s.n_dead_tup, 0) AS dead, coalesce(s.n_live_tup, 0) AS live
  FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_stat_user_tables s ON s.relid = c.oid
 WHERE c.oid = to_regclass('upwell.pending')
