-- The sink's own tables (DESIGN 8). What belongs to one collection is brought in line with the spec by migrate.py.

-- Which capture of the source: one topic prefix each.
CREATE TABLE upwell.lineage (
    number integer PRIMARY KEY,
    topic_prefix text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Topics as upwell created them; another id or partition count is a HALT.
CREATE TABLE upwell.topic (
    topic text PRIMARY KEY,
    lineage integer NOT NULL REFERENCES upwell.lineage,
    collection text,
    topic_id text NOT NULL,
    partitions integer NOT NULL
);

CREATE TABLE upwell.collection (
    name text PRIMARY KEY,
    table_name text NOT NULL,
    key_columns text[] NOT NULL,
    fence_lineage integer,
    fence_lsn bigint,
    load_state text NOT NULL DEFAULT 'incomplete' CHECK (load_state IN ('incomplete', 'loading', 'complete')),
    load_detail jsonb,
    threshold_seconds double precision NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((fence_lineage IS NULL) = (fence_lsn IS NULL))
);

-- Model, template and chunking that vectors were made with. `live` is searched; `live` and `filling` are fed.
CREATE TABLE upwell.generation (
    collection text NOT NULL REFERENCES upwell.collection,
    number integer NOT NULL CHECK (number > 0),
    fingerprint text NOT NULL,
    model text NOT NULL,
    dimension integer NOT NULL,
    template text NOT NULL,
    max_tokens integer NOT NULL,
    overlap_tokens integer NOT NULL,
    state text NOT NULL CHECK (state IN ('filling', 'live', 'retired', 'dropped')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (collection, number)
);
CREATE UNIQUE INDEX generation_live ON upwell.generation (collection) WHERE state = 'live';

-- The only offsets that count: the next one of each partition, written with what was taken in.
CREATE TABLE upwell.position (
    topic text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- One row for each (generation, key) whose newest text is not searchable yet: the freshness state itself.
-- `pending_since` = least commit time not yet reflected; `next_*` = the same of what came after the claim.
CREATE TABLE upwell.pending (
    collection text COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    lineage integer NOT NULL,
    "offset" bigint NOT NULL,
    lane text NOT NULL CHECK (lane IN ('live', 'backfill')),
    deadline timestamptz NOT NULL,
    pending_since timestamptz,
    changes integer NOT NULL,
    taken_in_at timestamptz NOT NULL,
    next_since timestamptz,
    next_changes integer NOT NULL DEFAULT 0,
    next_taken_in_at timestamptz,
    available_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    token uuid,
    slot text,
    lease_until timestamptz,
    claimed_lineage integer,
    claimed_offset bigint,
    claimed_at timestamptz,
    PRIMARY KEY (collection, generation, key)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 5000
);
CREATE INDEX pending_live ON upwell.pending (deadline) WHERE lane = 'live';
CREATE INDEX pending_backfill ON upwell.pending (deadline) WHERE lane = 'backfill';
CREATE INDEX pending_slot ON upwell.pending (slot) WHERE token IS NOT NULL;

-- Records that could not be taken in (stage `intake`: bytes as consumed) or embedded (stage `embed`).
CREATE TABLE upwell.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection text NOT NULL,
    stage text NOT NULL CHECK (stage IN ('intake', 'embed')),
    topic text,
    partition integer,
    "offset" bigint NOT NULL,
    lineage integer NOT NULL,
    generation integer,
    key text COLLATE "C",
    key_bytes bytea,
    value_bytes bytea,
    headers jsonb,
    error_class text NOT NULL,
    error text NOT NULL,
    committed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at timestamptz,
    closed_by text CHECK (closed_by IN ('superseded', 'replayed', 'waived')),
    reason text,
    CHECK ((closed_at IS NULL) = (closed_by IS NULL))
);
CREATE UNIQUE INDEX dead_letter_open_offset ON upwell.dead_letter (topic, partition, "offset")
    WHERE closed_at IS NULL AND stage = 'intake';
CREATE UNIQUE INDEX dead_letter_open_embed ON upwell.dead_letter (collection, generation, key)
    WHERE closed_at IS NULL AND stage = 'embed';
CREATE INDEX dead_letter_open_key ON upwell.dead_letter (collection, key) WHERE closed_at IS NULL;

-- Keys that must be looked for at the source again, in a version of their records. `asked`: a re-read was sent for.
CREATE TABLE upwell.repair (
    collection text NOT NULL,
    key text COLLATE "C" NOT NULL,
    lineage integer NOT NULL,
    "offset" bigint NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    asked boolean NOT NULL DEFAULT false,
    looked_at timestamptz,
    PRIMARY KEY (collection, key)
);

-- What happened to which offset, and which change made which vectors. Days are partitions.
CREATE TABLE upwell.audit (
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    collection text NOT NULL,
    action text NOT NULL,
    key text COLLATE "C",
    topic text,
    partition integer,
    first_offset bigint,
    last_offset bigint,
    count bigint NOT NULL DEFAULT 1,
    lineage integer,
    lsn bigint,
    transaction_id bigint,
    committed_at timestamptz,
    generation integer,
    text_hash bytea,
    chunks integer,
    detail jsonb
) PARTITION BY RANGE (at);
CREATE INDEX audit_key ON upwell.audit (collection, key, at);
CREATE INDEX audit_offset ON upwell.audit (topic, partition, first_offset);
CREATE TABLE upwell.audit_default PARTITION OF upwell.audit DEFAULT;

-- Makes the partitions of today and the `days_ahead` next days, drops what is older than `retention_days` (0: keeps
-- all). Returns how many it made and dropped. A second caller at the same time does nothing.
CREATE FUNCTION upwell.make_audit_partitions(days_ahead integer, retention_days integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '5s'
AS $$
DECLARE
    today constant date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day date;
    part text;
    done integer := 0;
BEGIN
    IF days_ahead NOT BETWEEN 0 AND 366 OR retention_days < 0 THEN
        RAISE EXCEPTION 'days_ahead is 0 to 366 and retention_days not negative' USING ERRCODE = '22023';
    END IF;
    IF to_regclass('upwell.audit_' || to_char(today + days_ahead, 'YYYYMMDD')) IS NOT NULL
        AND to_regclass('upwell.audit_' || to_char(today, 'YYYYMMDD')) IS NOT NULL
        AND NOT EXISTS (SELECT FROM upwell.audit_default)
        AND (retention_days = 0 OR NOT EXISTS (
            SELECT FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'upwell.audit'::regclass AND c.relname ~ '^audit_[0-9]{8}$'
                AND c.relname < 'audit_' || to_char(today - retention_days, 'YYYYMMDD')))
        OR NOT pg_try_advisory_xact_lock(hashtextextended('upwell.audit', 0))
    THEN
        RETURN 0;
    END IF;
    -- Nothing but this lock is held when it is waited for, so that no writer of audit rows can deadlock with it.
    LOCK TABLE upwell.audit IN ACCESS EXCLUSIVE MODE;
    FOR day IN SELECT today + ahead FROM generate_series(0, days_ahead) AS ahead LOOP
        part := 'audit_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass('upwell.' || part) IS NOT NULL;
        EXECUTE format('CREATE TABLE upwell.%I (LIKE upwell.audit INCLUDING DEFAULTS)', part);
        EXECUTE format(
            'WITH moved AS (DELETE FROM upwell.audit_default WHERE at >= %L AND at < %L RETURNING *) '
            'INSERT INTO upwell.%I SELECT * FROM moved', day::timestamptz, (day + 1)::timestamptz, part);
        EXECUTE format(
            'ALTER TABLE upwell.audit ATTACH PARTITION upwell.%I FOR VALUES FROM (%L) TO (%L)',
            part, day::timestamptz, (day + 1)::timestamptz);
        done := done + 1;
    END LOOP;
    IF retention_days = 0 THEN
        RETURN done;
    END IF;
    FOR part IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'upwell.audit'::regclass AND c.relname ~ '^audit_[0-9]{8}$'
            AND c.relname < 'audit_' || to_char(today - retention_days, 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE upwell.%I', part);
        done := done + 1;
    END LOOP;
    DELETE FROM upwell.audit_default WHERE at < (today - retention_days)::timestamptz;
    RETURN done;
END
$$;

REVOKE EXECUTE ON FUNCTION upwell.make_audit_partitions(integer, integer) FROM PUBLIC;

-- What workers count, and how long things took; a writer is one process incarnation.
CREATE TABLE upwell.counter (
    collection text NOT NULL,
    minute timestamptz NOT NULL,
    name text NOT NULL,
    writer text NOT NULL,
    value bigint NOT NULL,
    PRIMARY KEY (collection, minute, name, writer)
) WITH (fillfactor = 80);

CREATE TABLE upwell.delay (
    collection text NOT NULL,
    minute timestamptz NOT NULL,
    stage text NOT NULL,
    writer text NOT NULL,
    sketch jsonb NOT NULL,
    PRIMARY KEY (collection, minute, stage, writer)
) WITH (fillfactor = 80);

CREATE TABLE upwell.worker (
    slot text PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    version text NOT NULL DEFAULT ''
);
