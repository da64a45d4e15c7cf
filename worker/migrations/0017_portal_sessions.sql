-- Sessions of an app's portal: which installation a user launched it from, and until when.
CREATE TABLE mooring.portal_sessions (
    -- SHA-256 of the token, which is kept nowhere.
    token_sha256    bytea       PRIMARY KEY,
    source          text        NOT NULL,
    app_id          text        NOT NULL,
    place           text        NOT NULL,
    installation_id text        NOT NULL,
    generation      integer     NOT NULL,
    -- Where the platform names the user.
    user_id         text,
    expires_at      timestamptz NOT NULL
);

CREATE INDEX portal_sessions_by_end ON mooring.portal_sessions (expires_at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT SELECT, INSERT, DELETE ON mooring.portal_sessions TO mooring_worker;
        -- Locks rows that it deletes.
        GRANT UPDATE (expires_at) ON mooring.portal_sessions TO mooring_worker;
    END IF;
END
$$;
