-- What operators need: rebuilds, dead letters, and the identity of the log.

-- What is known of rebuilds: so that one goes on where it was interrupted, and
-- so that one that was swapped in can be taken back.
CREATE TABLE mooring.rebuilds (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin           text        NOT NULL CHECK (origin IN ('log', 'journal')),
    -- Up to here it reads its origin; what comes later it takes from the journal.
    target_sequence  bigint      NOT NULL,
    -- From the log: the partitions that are loaded.
    partitions_done  smallint[]  NOT NULL DEFAULT '{}',
    -- From the journal: the last place that is loaded.
    last_source      text,
    last_place       text,
    started_at       timestamptz NOT NULL DEFAULT now(),
    loaded_at        timestamptz,
    -- When it was swapped in, and up to where the former projection was complete then.
    swapped_at       timestamptz,
    swapped_sequence bigint,
    abandoned_at     timestamptz
);

CREATE UNIQUE INDEX rebuilds_one_at_a_time
    ON mooring.rebuilds ((true)) WHERE swapped_at IS NULL AND abandoned_at IS NULL;

-- Which log the journal was filled from. Another one has other sequences.
CREATE TABLE mooring.log_identity (
    singleton         boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    stream_created_at timestamptz NOT NULL,
    recorded_at       timestamptz NOT NULL DEFAULT now()
);

-- Whose secrets were erased, when, by whom and why. The log says that, too.
CREATE TABLE mooring.erasures (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source          text        NOT NULL,
    installation_id text        NOT NULL,
    erased_by       text        NOT NULL,
    why             text        NOT NULL,
    started_at      timestamptz NOT NULL DEFAULT now(),
    -- Null while it is not finished, or was interrupted.
    finished_at     timestamptz,
    stream_sequence bigint,
    keys_destroyed  integer
);

-- Places to which an operator appended what had been in the log for long: who
-- looks for places that changed since some sequence would not find them.
CREATE TABLE mooring.late_places (
    source text NOT NULL,
    place  text NOT NULL,
    PRIMARY KEY (source, place)
);

-- What came of a dead letter, who did it and why. Null while nothing did.
ALTER TABLE mooring.dead_letters
    ADD COLUMN resolution  text CHECK (resolution IN ('redriven', 'discarded')),
    ADD COLUMN resolved_at timestamptz,
    ADD COLUMN resolved_by text,
    ADD COLUMN resolved_why text,
    ADD CHECK ((resolution IS NULL) = (resolved_at IS NULL));

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT SELECT ON mooring.rebuilds TO mooring_worker;
        GRANT SELECT, INSERT ON mooring.log_identity TO mooring_worker;
        GRANT UPDATE (reason, detail) ON mooring.dead_letters TO mooring_worker;
    END IF;
END
$$;
