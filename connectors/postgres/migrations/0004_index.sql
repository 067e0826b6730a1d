-- How the vectors of a collection are indexed, as the spec said at the last `upwell migrate`: `upwell maintain` and a
-- switch of the generation go by it, and need no spec. The defaults are what indexes of before were made with.
ALTER TABLE upwell.collection
    ADD COLUMN index_m integer NOT NULL DEFAULT 16,
    ADD COLUMN index_ef_construction integer NOT NULL DEFAULT 64,
    ADD COLUMN index_ef_search integer NOT NULL DEFAULT 100,
    ADD COLUMN index_build text NOT NULL DEFAULT 'at_once' CHECK (index_build IN ('at_once', 'after_load'));
