-- How fresh the vectors are (DESIGN 7): watermarks, verdicts, their history, and what the monitor remembers.

-- A key in doubt holds the watermark below the commit that put it in doubt; nothing after it is known to be reflected.
ALTER TABLE upwell.repair ADD COLUMN committed_at timestamptz;

-- Where a worker says how it is, "" if nowhere.
ALTER TABLE upwell.worker ADD COLUMN url text NOT NULL DEFAULT '';

-- Every commit of the source up to `watermark` (the source's clock) is searchable; NULL until a round was finished. Within
-- a lineage and a live generation it only grows. Each collection has a row from the start, so that a switch of the
-- generation and whoever raises the watermark always meet at it.
-- `violations`: events taken in later that were committed at or before it; none may ever be.
CREATE TABLE upwell.watermark (
    collection text PRIMARY KEY REFERENCES upwell.collection ON DELETE CASCADE,
    lineage integer NOT NULL DEFAULT 0,
    generation integer,
    watermark timestamptz,
    round bigint NOT NULL DEFAULT 0,
    moved_at timestamptz,
    violations bigint NOT NULL DEFAULT 0,
    violated_at timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The last evaluation of each collection. `source_ahead_seconds`: the source's clock less the sink's. `delay`: p50, p95,
-- p99 and max in seconds over the last hour; `slo`: what `upwell report --json` has under that name.
CREATE TABLE upwell.evaluation (
    collection text PRIMARY KEY REFERENCES upwell.collection ON DELETE CASCADE,
    lineage integer NOT NULL,
    evaluated_at timestamptz NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('FRESH', 'STALE', 'INCOMPLETE', 'UNKNOWN')),
    reason text NOT NULL,
    threshold_seconds double precision NOT NULL,
    watermark timestamptz,
    source_ahead_seconds double precision NOT NULL DEFAULT 0,
    pending bigint NOT NULL DEFAULT 0,
    dead_letters bigint NOT NULL DEFAULT 0,
    delay jsonb NOT NULL DEFAULT '{}',
    slo jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Verdicts by minute, and by hour once they are older (`minutes` says how many a row stands for). A minute has the worst
-- verdict that was given in it; minutes in which nobody evaluated have no row. `good` and `bad`: changes that became
-- searchable within the threshold and later.
CREATE TABLE upwell.freshness_history (
    collection text NOT NULL REFERENCES upwell.collection ON DELETE CASCADE,
    bucket timestamptz NOT NULL,
    minutes smallint NOT NULL DEFAULT 1,
    fresh smallint NOT NULL DEFAULT 0,
    stale smallint NOT NULL DEFAULT 0,
    incomplete smallint NOT NULL DEFAULT 0,
    unknown smallint NOT NULL DEFAULT 0,
    staleness_max_seconds real,
    pending_max integer NOT NULL DEFAULT 0,
    good bigint NOT NULL DEFAULT 0,
    bad bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (collection, bucket)
) WITH (fillfactor = 80);

-- The slowest changes of a minute (of an hour, of a day, once they are older), with the seconds spent in each stage.
-- Each writer has its own ten and replaces them while the minute lasts; "" has what is rolled up.
CREATE TABLE upwell.slow_change (
    collection text NOT NULL,
    bucket timestamptz NOT NULL,
    key text COLLATE "C" NOT NULL,
    seconds real NOT NULL,
    committed_at timestamptz NOT NULL,
    visible_at timestamptz NOT NULL,
    stages jsonb NOT NULL DEFAULT '{}',
    writer text NOT NULL DEFAULT ''
);
CREATE INDEX slow_change_bucket ON upwell.slow_change (collection, bucket, seconds DESC);

-- Collections that stand still until somebody mends what the reason names, as a worker found them.
CREATE TABLE upwell.blocked (
    collection text NOT NULL,
    slot text NOT NULL,
    reason text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (collection, slot)
);

-- Monitors, as `upwell.worker` has workers.
CREATE TABLE upwell.monitor (
    name text PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    url text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    version text NOT NULL DEFAULT ''
);

-- How far the canary's topic was read: a number that is missing in it is a lost change, whoever reads on.
CREATE TABLE upwell.canary_seen (
    lineage integer PRIMARY KEY,
    next_offset bigint NOT NULL,
    number bigint NOT NULL
);

-- Lost changes that were seen only once; they stay until the next lineage.
CREATE TABLE upwell.gap (
    lineage integer NOT NULL,
    reason text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (lineage, reason)
);

-- The first canary of a generation of the canary's collection: later ones must be near it.
CREATE TABLE upwell.canary_reference (
    generation integer PRIMARY KEY,
    embedding real[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The bins of a sketch: as text, `key:weight key:weight`, which takes a third of the space, or as the object that workers
-- of before write while they are being replaced.
CREATE FUNCTION upwell.sketch_bins(sketch jsonb) RETURNS TABLE (key text, weight double precision)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT split_part(bin, ':', 1), split_part(bin, ':', 2)::float8
      FROM string_to_table(CASE jsonb_typeof(sketch -> 'bins') WHEN 'string' THEN sketch ->> 'bins' END, ' ') AS bin
     WHERE bin <> ''
    UNION ALL
    SELECT o.key, o.value::float8
      FROM jsonb_each_text(CASE jsonb_typeof(sketch -> 'bins') WHEN 'object' THEN sketch -> 'bins' END) AS o;
END;
REVOKE EXECUTE ON FUNCTION upwell.sketch_bins(jsonb) FROM PUBLIC;

-- Small rows that come and go by the minute: what was deleted is used again soon.
ALTER TABLE upwell.counter SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE upwell.delay SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE upwell.freshness_history SET (autovacuum_vacuum_scale_factor = 0.05);

-- The canary is taken in and embedded every few seconds: its audit rows say nothing after an hour. Returns how many went.
-- The only audit rows that a worker's role may delete.
CREATE FUNCTION upwell.drop_canary_audit() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
DECLARE
    dropped bigint;
BEGIN
    DELETE FROM upwell.audit WHERE collection = 'canary' AND at < clock_timestamp() - interval '1 hour';
    GET DIAGNOSTICS dropped = ROW_COUNT;
    RETURN dropped;
END
$$;

REVOKE EXECUTE ON FUNCTION upwell.drop_canary_audit() FROM PUBLIC;

-- What applications ask before they prompt. An evaluation that is itself old is no answer, and a watermark that has aged
-- past the threshold since is stale.
CREATE VIEW upwell.freshness AS
SELECT c.name AS collection,
       CASE WHEN e.evaluated_at IS NULL OR a.age_seconds NOT BETWEEN -15 AND 15 THEN 'UNKNOWN'
            WHEN e.verdict = 'FRESH' AND (s.seconds IS NULL OR s.seconds > e.threshold_seconds) THEN 'STALE'
            ELSE e.verdict END AS verdict,
       CASE WHEN e.evaluated_at IS NULL THEN 'no monitor has evaluated it yet; run `upwell monitor`'
            WHEN a.age_seconds > 15 THEN
                 format('not evaluated for %s s; see that `upwell monitor` runs', round(a.age_seconds))
            WHEN a.age_seconds < -15 THEN 'evaluated at a time that is still to come; see the clock of this server'
            WHEN e.verdict = 'FRESH' AND (s.seconds IS NULL OR s.seconds > e.threshold_seconds) THEN
                 'no round has completed' || coalesce(' for ' || round(s.seconds) || ' s', '')
            ELSE e.reason END AS reason,
       e.watermark, s.seconds AS staleness_seconds, e.pending, e.dead_letters, e.threshold_seconds,
       (e.slo ->> 'sli')::float8 AS sli, (e.slo ->> 'objective')::float8 AS objective,
       (e.slo ->> 'budget_remaining_ratio')::float8 AS budget_remaining_ratio, e.slo -> 'burn_rates' AS burn_rates,
       (e.delay ->> 'p50')::float8 AS delay_p50_seconds, (e.delay ->> 'p95')::float8 AS delay_p95_seconds,
       (e.delay ->> 'p99')::float8 AS delay_p99_seconds, (e.delay ->> 'max')::float8 AS delay_max_seconds,
       e.evaluated_at, e.slo, e.source_ahead_seconds
  FROM upwell.collection c
  LEFT JOIN upwell.evaluation e ON e.collection = c.name
  LEFT JOIN LATERAL (SELECT extract(epoch FROM clock_timestamp() - e.evaluated_at)::float8 AS age_seconds) a ON true
  LEFT JOIN LATERAL (SELECT CASE WHEN e.watermark IS NOT NULL THEN -- without one nothing is known, not 0 seconds
                                 greatest(extract(epoch FROM clock_timestamp() - e.watermark)::float8
                                          + e.source_ahead_seconds, 0) END AS seconds) s ON true
 WHERE c.name <> 'canary';

GRANT SELECT ON upwell.freshness, upwell.freshness_history TO upwell_reader;
