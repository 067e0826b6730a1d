-- Several generations of a collection beside each other (DESIGN 8).

-- What a worker cannot do though it lives: generations whose model it cannot load, with the reason.
ALTER TABLE upwell.worker ADD COLUMN problems jsonb NOT NULL DEFAULT '[]';

-- One fills at a time.
CREATE UNIQUE INDEX generation_filling ON upwell.generation (collection) WHERE state = 'filling';
COMMENT ON TABLE upwell.generation IS 'fed: filling, live (what search sees), retired (was live, for a rollback)';

-- When a generation was last made live: a rollback goes to the one that was live last.
ALTER TABLE upwell.generation ADD COLUMN live_at timestamptz;
UPDATE upwell.generation SET live_at = created_at WHERE state IN ('live', 'retired');

-- A worker without the model of a filling generation must not read through its rows at each claim.
DROP INDEX upwell.pending_backfill;
CREATE INDEX pending_backfill ON upwell.pending (collection, generation, deadline) WHERE lane = 'backfill';
