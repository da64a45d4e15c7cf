-- Late places are numbered in the order in which they are committed, so that a
-- rebuild knows which of them it has read already.
ALTER TABLE mooring.late_places
    ADD COLUMN number bigint NOT NULL GENERATED ALWAYS AS IDENTITY UNIQUE;

ALTER TABLE mooring.rebuilds
    -- The last late place when the rebuild began: it reads what came before.
    ADD COLUMN target_late  bigint NOT NULL DEFAULT 0,
    -- The last late place when it was swapped in. The former projection has it.
    ADD COLUMN swapped_late bigint NOT NULL DEFAULT 0;

-- An id can be installed in several places of one source, one for each app.
-- Null in both columns: it was written before they were added.
ALTER TABLE mooring.credential_access ADD COLUMN place text;
-- The places in which the installation was erased.
ALTER TABLE mooring.erasures ADD COLUMN places text[];
