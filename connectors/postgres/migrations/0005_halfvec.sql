-- The type of a collection's vectors, as the spec said when it was made. It stays: a view's column cannot change its type
-- under readers, and all generations take turns behind one view. Vectors of before are of pgvector's `vector`.
ALTER TABLE upwell.collection
    ADD COLUMN index_type text NOT NULL DEFAULT 'vector' CHECK (index_type IN ('vector', 'halfvec'));
