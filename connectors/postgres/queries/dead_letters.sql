-- Dead letters for those who look after them. Closed ones are empty: what they held is not needed any more.

-- name: letter
SELECT id, collection, stage, topic, partition, "offset", lineage, generation, key, key_bytes, value_bytes, headers,
       error_class, error, committed_at, created_at, closed_at, closed_by, reason
  FROM upwell.dead_letter WHERE id = %(id)s

-- name: listed
-- Without what they hold; the oldest first.
SELECT id, collection, stage, key, topic, partition, "offset", lineage, generation, error_class, error, committed_at,
       created_at, closed_at, closed_by, reason,
       extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_seconds, count(*) OVER () AS total
  FROM upwell.dead_letter
 WHERE (%(collection)s::text IS NULL OR collection = %(collection)s) AND (%(closed)s OR closed_at IS NULL)
 ORDER BY id LIMIT %(limit)s

-- name: in_order
-- Those named, closed ones too, or all open ones of a kind, in the order in which they came: an older one of a key goes
-- before a newer one, which would supersede it.
SELECT id, collection FROM upwell.dead_letter
 WHERE CASE WHEN %(ids)s::bigint[] IS NULL
            THEN closed_at IS NULL AND (%(collection)s::text IS NULL OR collection = %(collection)s)
                 AND (%(error_class)s::text IS NULL OR error_class = %(error_class)s)
            ELSE id = ANY(%(ids)s::bigint[]) END
 ORDER BY collection, lineage, topic, partition, "offset", id

-- name: keep_open
-- A replay that failed: the error of now, and what could be read this time.
UPDATE upwell.dead_letter
   SET error_class = %(error_class)s, error = %(error)s, key = coalesce(key, %(key)s::text),
       committed_at = coalesce(committed_at, %(committed_at)s::timestamptz)
 WHERE id = %(id)s AND closed_at IS NULL

-- name: close
-- The last lock of a replay, as of an intake: whoever closed it meanwhile has won, and nothing is written.
UPDATE upwell.dead_letter
   SET closed_at = clock_timestamp(), closed_by = %(closed_by)s, reason = %(reason)s, key = coalesce(key, %(key)s::text),
       key_bytes = NULL, value_bytes = NULL, headers = NULL
 WHERE id = %(id)s AND closed_at IS NULL

-- name: audit_closed
-- Count 0 and no topic: the offset has its one outcome already, `dead_letter`.
INSERT INTO upwell.audit
       (collection, action, key, first_offset, last_offset, count, lineage, lsn, transaction_id, committed_at, generation,
        text_hash, detail)
SELECT collection, %(closed_by)s::text, key, "offset", "offset", 0, lineage, %(lsn)s::bigint, %(transaction_id)s::bigint,
       committed_at, generation, %(text_hash)s::bytea,
       jsonb_strip_nulls(jsonb_build_object('dead_letter', id, 'stage', stage, 'topic', topic, 'partition', partition,
                                            'outcome', %(outcome)s::text, 'reason', reason, 'by', session_user))
  FROM upwell.dead_letter WHERE id = %(id)s

-- name: lock_record
SELECT _deleted, _lineage, _offset, _text_hash FROM {record} WHERE _key = %(key)s FOR NO KEY UPDATE

-- name: is_fed
SELECT FROM upwell.generation
 WHERE collection = %(collection)s AND number = %(generation)s AND state <> 'dropped'
