-- Changes that are pushed to endpoints: how far each has been taken over from the feed, and
-- what of that was not delivered yet.
CREATE TABLE mooring.push_endpoints (
    name              text        PRIMARY KEY,
    -- Up to here changes of the feed were delivered, or stand in push_waiting.
    taken_position    bigint      NOT NULL,
    -- Nothing is delivered, and nothing is lost, until an operator resumes it.
    paused_at         timestamptz,
    paused_why        text,
    last_delivered_at timestamptz,
    CHECK ((paused_at IS NULL) = (paused_why IS NULL))
);

CREATE TABLE mooring.push_waiting (
    endpoint        text        NOT NULL REFERENCES mooring.push_endpoints ON DELETE CASCADE,
    position        bigint      NOT NULL,
    -- Of one installation only the first that waits is delivered.
    source          text        NOT NULL,
    installation_id text        NOT NULL,
    place           text        NOT NULL,
    attempts        integer     NOT NULL DEFAULT 0,
    not_before      timestamptz NOT NULL DEFAULT '-infinity',
    problem         text,
    PRIMARY KEY (endpoint, position)
);

CREATE INDEX push_waiting_by_installation
    ON mooring.push_waiting (endpoint, source, place, installation_id, position);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT SELECT, INSERT, UPDATE ON mooring.push_endpoints TO mooring_worker;
        GRANT SELECT, INSERT, UPDATE, DELETE ON mooring.push_waiting TO mooring_worker;
    END IF;
END
$$;
