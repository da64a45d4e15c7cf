-- The keys of the ring that a worker has had as its active one: pages may need
-- them until they are retired, so a worker that lacks one is not ready.
CREATE TABLE mooring.sealing_keys (
    id           text PRIMARY KEY,
    activated_at timestamptz NOT NULL DEFAULT now(),
    -- When `worker keys retire` found that nothing needs it.
    retired_at   timestamptz
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        -- It may be made active again.
        GRANT SELECT, INSERT, UPDATE ON mooring.sealing_keys TO mooring_worker;
    END IF;
END
$$;
