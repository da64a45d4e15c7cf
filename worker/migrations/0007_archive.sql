-- Old events leave the log for the archive, and their payloads the journal. What
-- tells duplicates and what the fold needs stays.

-- The hash of the event as it stands in the log, where its payload has left the
-- journal; null where `event` is whole.
ALTER TABLE mooring.journal ADD COLUMN event_sha256 bytea;

-- What was proven of the archive, and what was done after that: in this order, so
-- that an interrupted archiver goes on. Outside the archive it says how far that
-- was: a segment that is missing or was changed there is seen.
CREATE TABLE mooring.archived_segments (
    first_sequence      bigint      PRIMARY KEY,
    last_sequence       bigint      NOT NULL UNIQUE,
    manifest_sha256     text        NOT NULL,
    -- It was read back, and has every event that the journal has.
    verified_at         timestamptz NOT NULL DEFAULT now(),
    -- The log need not have its events any more.
    trimmed_at          timestamptz,
    -- The journal need not have their payloads any more.
    journal_relieved_at timestamptz,
    CHECK (first_sequence <= last_sequence),
    CHECK (trimmed_at IS NOT NULL OR journal_relieved_at IS NULL)
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT SELECT, INSERT ON mooring.archived_segments TO mooring_worker;
        GRANT UPDATE (trimmed_at, journal_relieved_at) ON mooring.archived_segments TO mooring_worker;
    END IF;
END
$$;
