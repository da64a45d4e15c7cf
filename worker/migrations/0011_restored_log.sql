-- These positions the log had when `worker restore` had made it whole. An event among them
-- may stand in the stream at another sequence than its position, which the journal knows.
ALTER TABLE mooring.log_identity
    ADD COLUMN restored_from bigint NOT NULL DEFAULT 0,
    ADD COLUMN restored_to   bigint NOT NULL DEFAULT 0;

-- A worker that applies a restored event appends late to its place.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT SELECT, INSERT, UPDATE (number) ON mooring.late_places TO mooring_worker;
    END IF;
END
$$;
