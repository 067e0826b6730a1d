-- What `upwell maintain` looks at and does. No statement here takes a lock that a worker or a reader has to wait for.

-- name: generations
-- Those that are fed. `filling`: rows wait for their first vector, or a first load is not complete.
SELECT g.collection, g.number, g.state, g.dimension, c.index_m, c.index_ef_construction, c.index_ef_search, c.index_build,
       c.index_type,
       EXISTS (SELECT FROM upwell.pending p WHERE p.collection = g.collection AND p.generation = g.number
                                              AND coalesce(p.pending_since, p.next_since) IS NULL)
       OR c.load_state <> 'complete' AS filling
  FROM upwell.generation g JOIN upwell.collection c ON c.name = g.collection
 WHERE g.state <> 'dropped' ORDER BY g.collection, g.number

-- name: unindexed
-- Collections whose searches read the whole table, though their rows are there.
SELECT g.collection FROM upwell.generation g JOIN upwell.collection c ON c.name = g.collection
 WHERE g.state = 'live'
   AND (c.index_build = 'at_once'
        OR c.load_state = 'complete'
           AND NOT EXISTS (SELECT FROM upwell.pending p WHERE p.collection = g.collection AND p.generation = g.number
                                                          AND coalesce(p.pending_since, p.next_since) IS NULL))
   AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                     JOIN pg_am a ON a.oid = x.relam AND a.amname = 'hnsw'
                    WHERE i.indrelid = to_regclass(format('upwell.embedding_%%s_g%%s', g.collection, g.number))
                      AND i.indisvalid)
 ORDER BY g.collection

-- name: table
-- Counted, as statistics are gone after a crash; only of the dead nothing else knows.
SELECT count(*) AS rows, pg_table_size(to_regclass(%(table)s)) AS bytes,
       (SELECT coalesce(max(n_dead_tup), 0) FROM pg_stat_user_tables WHERE relid = to_regclass(%(table)s)) AS dead
  FROM ONLY {relation}

-- name: session
-- A build takes as long as it takes, and a wait for old transactions holds nobody up.
SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false),
       set_config('maintenance_work_mem', coalesce(%(memory)s, current_setting('maintenance_work_mem')), false)

-- name: owns
SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'upwell'

-- name: drop
DROP INDEX CONCURRENTLY IF EXISTS {index}

-- name: rename
ALTER INDEX {index} RENAME TO {to}

-- name: vacuum
VACUUM (ANALYZE) {table}

-- name: progress
-- How far a session's build is, and whose transaction it waits for.
SELECT phase, blocks_total, blocks_done, lockers_total > lockers_done AS waits, current_locker_pid AS pid
  FROM pg_stat_progress_create_index WHERE pid = %(pid)s
