-- The change feed: what became of installations, for the apps that follow them. It stands
-- outside of the projection, which is built anew and swapped.
CREATE TABLE mooring.changes (
    -- Without holes and in the order of commit: whoever has seen one has seen all before it.
    position        bigint      PRIMARY KEY CHECK (position > 0),
    recorded_at     timestamptz NOT NULL,
    type            text        NOT NULL,
    cause           text        NOT NULL CHECK (cause IN ('event', 'replay', 'rebuild')),
    -- By the platform's clock, where it says, of the event that caused it.
    occurred_at     timestamptz NOT NULL,
    source          text        NOT NULL,
    app_id          text        NOT NULL,
    place           text        NOT NULL,
    installation_id text        NOT NULL,
    generation      integer     NOT NULL,
    -- As the read API showed it then. It holds no secret.
    installation    json        NOT NULL
);

CREATE INDEX changes_by_app ON mooring.changes (source, app_id, position);

-- Where the feed begins and ends. A sequence would not do: its numbers are given before
-- the commit, and a reader that is faster would pass over one.
CREATE TABLE mooring.changes_ends (
    singleton       boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- Of which positions these are. A cursor of another feed is refused.
    feed            text    NOT NULL,
    last_position   bigint  NOT NULL DEFAULT 0,
    pruned_position bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO mooring.changes_ends (feed)
    VALUES (left(replace(gen_random_uuid()::text, '-', ''), 12));

-- The worker's role deletes nothing by itself. Nobody loses a change that is a day old.
CREATE FUNCTION mooring.prune_changes(keep_for interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    upto bigint;
    pruned bigint;
BEGIN
    SELECT max(position) INTO upto
    FROM (SELECT position, recorded_at FROM mooring.changes ORDER BY position LIMIT at_most) AS oldest
    WHERE recorded_at < now() - greatest(keep_for, interval '1 day');
    IF upto IS NULL THEN
        RETURN 0;
    END IF;
    DELETE FROM mooring.changes WHERE position <= upto;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    UPDATE mooring.changes_ends SET pruned_position = greatest(pruned_position, upto);
    RETURN pruned;
END
$$;
REVOKE ALL ON FUNCTION mooring.prune_changes FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT SELECT, INSERT ON mooring.changes TO mooring_worker;
        GRANT SELECT, UPDATE (last_position) ON mooring.changes_ends TO mooring_worker;
        GRANT EXECUTE ON FUNCTION mooring.prune_changes TO mooring_worker;
    END IF;
END
$$;
