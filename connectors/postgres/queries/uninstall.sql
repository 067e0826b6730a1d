-- What `upwell uninstall` looks for and drops, at source and sink.

-- name: deployments
-- At the source: every deployment that lives in schema `upwell`.
SELECT name FROM upwell.deployment ORDER BY name

-- name: schema_there
-- Whether this database has a schema `upwell`, and whether a table of it.
SELECT to_regnamespace('upwell') IS NOT NULL AS schema, to_regclass(%(table)s) IS NOT NULL AS "table"

-- name: slots
SELECT slot_name::text AS name, active FROM pg_catalog.pg_replication_slots
 WHERE slot_name ~ %(pattern)s AND database = current_database() ORDER BY slot_name

-- name: drop_slot
SELECT pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots
 WHERE slot_name = %(slot)s AND NOT active

-- name: forget_deployment
DELETE FROM upwell.deployment WHERE name = %(name)s

-- name: forget_published
DELETE FROM upwell.published WHERE publication = %(publication)s

-- name: collections
-- In the sink.
SELECT name FROM upwell.collection ORDER BY name

-- name: generations
SELECT collection, number FROM upwell.generation WHERE state <> 'dropped' ORDER BY collection, number

-- name: count
SELECT count(*) AS rows FROM {table}

-- name: topic_prefix
-- Whose sink it is: the prefix of its newest lineage.
SELECT topic_prefix FROM upwell.lineage ORDER BY number DESC LIMIT 1

-- name: dependents
-- Views elsewhere that use ours: they go with them.
SELECT DISTINCT c.oid::regclass::text AS name
  FROM pg_catalog.pg_depend d
  JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
  JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
 WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
   AND c.relnamespace <> to_regnamespace('upwell')
   AND d.refobjid IN (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = to_regnamespace('upwell'))
 ORDER BY 1

-- name: left_in_schema
-- Whether anything is left in schema `upwell`.
SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = to_regnamespace('upwell')) AS anything

-- name: live_workers
-- Hold the lock of their slot, or said lately that they live.
SELECT slot, host, pid FROM upwell.worker
 WHERE seen_at > clock_timestamp() - %(within_seconds)s * interval '1 second'
    OR EXISTS (SELECT FROM pg_catalog.pg_locks l
                WHERE l.locktype = 'advisory' AND l.granted
                  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                  AND l.classid::bigint = hashtext('upwell.worker')::bigint & 4294967295
                  AND l.objid::bigint = hashtext(slot)::bigint & 4294967295)
 ORDER BY slot
