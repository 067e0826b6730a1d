-- After a table was read from end to end: rows that the source no longer has are in no event, so they are removed here.
-- Unseen = of an older lineage; or a snapshot row of this one that the scan did not bring again. What streaming wrote in
-- this lineage is never unseen: its deletion was streamed, too, and a snapshot row does not overwrite it (H5).

-- name: unseen
-- How many rows a sweep would look at.
SELECT count(*) FROM {record} r WHERE {unseen}

-- name: unknown_letters
-- Open dead letters of this lineage without a key: one of them may be any row's (H29).
SELECT count(*) FROM upwell.dead_letter
 WHERE collection = %(collection)s AND closed_at IS NULL AND key IS NULL AND lineage = %(lineage)s

-- name: lock_unseen
-- A batch in key order, of keys of which no dead letter of this lineage may be (H29).
SELECT _key, _lineage, _offset FROM {record} r
 WHERE {unseen} AND _key > %(after)s
   -- Under the lock that begins a lineage: a scan of an ended one says nothing.
   AND %(lineage)s = (SELECT coalesce(max(number), %(lineage)s) FROM upwell.lineage)
   AND NOT EXISTS (SELECT FROM upwell.dead_letter d
                    WHERE d.collection = %(collection)s AND d.closed_at IS NULL AND d.lineage = %(lineage)s
                      AND (d.key = r._key OR d.key IS NULL))
 ORDER BY _key LIMIT %(limit)s FOR UPDATE

-- name: condition
-- `starts`: end offset of each partition before the scan was asked for.
NOT r._deleted AND (r._lineage < %(lineage)s OR (r._lineage = %(lineage)s AND NOT r._streamed
    AND r._offset < coalesce((%(starts)s::jsonb ->> r._partition::text)::bigint, 0)))

-- name: close_ended_letters
-- What could not be taken in of an ended lineage was read again, or is gone.
UPDATE upwell.dead_letter
   SET closed_at = clock_timestamp(), closed_by = 'superseded', key_bytes = NULL, value_bytes = NULL, headers = NULL
 WHERE collection = %(collection)s AND closed_at IS NULL AND stage = 'intake' AND lineage < %(lineage)s
