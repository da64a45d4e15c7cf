-- What a caller reads is found by what it reaches, so that what is beyond costs it
-- nothing and shows in nothing.
CREATE INDEX journal_by_installation_and_app
    ON mooring.journal (installation_id, source, split_part(place, '/', 1));
DROP INDEX mooring.journal_by_installation;

DROP INDEX projection.installations_by_id;
CREATE INDEX installations_by_id
    ON projection.installations (installation_id, source, app_id);
CREATE INDEX installations_by_app
    ON projection.installations (source, app_id, place, installation_id);

-- A projection without these indexes is not swapped in again.
DROP SCHEMA IF EXISTS projection_next CASCADE;
DROP SCHEMA IF EXISTS projection_previous CASCADE;
UPDATE mooring.rebuilds SET abandoned_at = now()
    WHERE swapped_at IS NULL AND abandoned_at IS NULL;

-- Who opened which credential, and who was refused what. Each row is chained to the
-- one before, and only `record_access` writes: no role but the owner's can change,
-- delete or back-date one, and what the owner changes shows against an export.
CREATE TABLE mooring.access_log (
    -- Without holes.
    number          bigint      PRIMARY KEY CHECK (number > 0),
    recorded_at     timestamptz NOT NULL,
    -- The role that recorded it.
    recorded_by     text        NOT NULL,
    outcome         text        NOT NULL CHECK (outcome IN ('opened', 'refused', 'others_refused')),
    reason          text        NOT NULL,
    status          integer,
    -- How many requests this row stands for, in the seconds before.
    requests        bigint      NOT NULL CHECK (requests > 0),
    -- Null: nobody knows who it was.
    caller          text,
    subject         text,
    client_address  text,
    -- As the caller gave it.
    trace_id        text,
    route           text,
    source          text,
    place           text,
    installation_id text,
    generation      integer,
    key_id          text,
    digest          bytea       NOT NULL
);

CREATE INDEX access_log_by_installation
    ON mooring.access_log (source, installation_id, recorded_at) WHERE outcome = 'opened';
CREATE INDEX access_log_by_time ON mooring.access_log (recorded_at);

-- Where the chain begins and ends. What was before was exported and pruned.
CREATE TABLE mooring.access_log_ends (
    singleton     boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    pruned_number bigint      NOT NULL DEFAULT 0,
    pruned_digest bytea       NOT NULL DEFAULT '',
    pruned_at     timestamptz,
    pruned_by     text,
    last_number   bigint      NOT NULL DEFAULT 0,
    last_digest   bytea       NOT NULL DEFAULT ''
);
INSERT INTO mooring.access_log_ends DEFAULT VALUES;

-- SHA-256 over the digest before and over every field, each with its length, so that
-- no two rows give the same bytes. `worker audit` computes the same.
CREATE FUNCTION mooring.access_digest(previous bytea, entry mooring.access_log) RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT sha256(previous || convert_to(string_agg(
               coalesce(octet_length(convert_to(field, 'UTF8')) || ':' || field, '-'),
               ',' ORDER BY position), 'UTF8'))
    FROM unnest(ARRAY[
        entry.number::text,
        (extract(epoch FROM entry.recorded_at) * 1000000)::bigint::text,
        entry.recorded_by, entry.outcome, entry.reason, entry.status::text,
        entry.requests::text, entry.caller, entry.subject, entry.client_address,
        entry.trace_id, entry.route, entry.source, entry.place, entry.installation_id,
        entry.generation::text, entry.key_id
    ]) WITH ORDINALITY AS fields (field, position)
$$;

-- Sets number, time, role and digest itself. The lock on the end of the chain is held
-- until the transaction ends: who writes next goes on from there.
CREATE FUNCTION mooring.record_access(entries jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s' AS $$
DECLARE
    ends  mooring.access_log_ends;
    given record;
    entry mooring.access_log;
BEGIN
    IF jsonb_array_length(entries) > 1000 THEN
        RAISE EXCEPTION 'too many entries at once';
    END IF;
    SELECT * INTO STRICT ends FROM mooring.access_log_ends FOR UPDATE;
    FOR given IN
        SELECT * FROM jsonb_to_recordset(entries) AS given (
            outcome text, reason text, status integer, requests bigint, caller text, subject text,
            client_address text, trace_id text, route text, source text, place text,
            installation_id text, generation integer, key_id text)
    LOOP
        ends.last_number := ends.last_number + 1;
        entry := ROW(
            ends.last_number, clock_timestamp(), session_user, given.outcome,
            left(given.reason, 64), given.status, given.requests, left(given.caller, 200),
            left(given.subject, 300), left(given.client_address, 64), left(given.trace_id, 32),
            left(given.route, 200), given.source, given.place, given.installation_id,
            given.generation, given.key_id, '');
        ends.last_digest := mooring.access_digest(ends.last_digest, entry);
        entry.digest := ends.last_digest;
        INSERT INTO mooring.access_log VALUES (entry.*);
    END LOOP;
    UPDATE mooring.access_log_ends SET
        last_number = ends.last_number,
        last_digest = ends.last_digest;
END
$$;
REVOKE ALL ON FUNCTION mooring.record_access(jsonb) FROM PUBLIC;

-- What was recorded before is the beginning of the chain.
DO $$
DECLARE
    ends  mooring.access_log_ends;
    given record;
    entry mooring.access_log;
BEGIN
    SELECT * INTO STRICT ends FROM mooring.access_log_ends;
    FOR given IN SELECT * FROM mooring.credential_access ORDER BY id LOOP
        ends.last_number := ends.last_number + 1;
        entry := ROW(
            ends.last_number, given.accessed_at, 'before 0.2', 'opened', 'credential', 200, 1,
            given.caller, NULL, NULL, NULL, NULL, given.source, given.place,
            given.installation_id, given.generation, given.key_id, '');
        ends.last_digest := mooring.access_digest(ends.last_digest, entry);
        entry.digest := ends.last_digest;
        INSERT INTO mooring.access_log VALUES (entry.*);
    END LOOP;
    UPDATE mooring.access_log_ends SET
        last_number = ends.last_number,
        last_digest = ends.last_digest;
END
$$;
DROP TABLE mooring.credential_access;

-- Of the journal a worker changes what a copy from an earlier place in the log brings,
-- and what the fold still needs: never whose event it is, or its kind or key.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT EXECUTE ON FUNCTION mooring.record_access(jsonb) TO mooring_worker;
        REVOKE UPDATE ON mooring.journal FROM mooring_worker;
        GRANT UPDATE (stream_sequence, received_at, traceparent, event, event_sha256, kept)
            ON mooring.journal TO mooring_worker;
    END IF;
END
$$;
