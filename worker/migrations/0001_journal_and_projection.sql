-- What survives a rebuild. The journal holds the events, each once; Postgres is
-- the authority on duplicates, the broker's window is only the first net.
CREATE SCHEMA mooring;

-- What a rebuild may replace: folded from the journal, nothing else.
CREATE SCHEMA projection;

CREATE TABLE mooring.journal (
    message_id      text        PRIMARY KEY,
    stream_sequence bigint      NOT NULL UNIQUE,
    source          text        NOT NULL,
    idempotency_key text        NOT NULL,
    -- Same key and fingerprint, other message ID: a conflict; the first counts.
    secret_fingerprint text,
    event_type      text        NOT NULL,
    -- Null for an event of an unknown kind that names no installation.
    installation_id text,
    place           text,
    received_at     timestamptz NOT NULL,
    occurred_at     timestamptz,
    -- The context of the publish span, to find the trace of a callback again.
    traceparent     text,
    -- As in the log. Not jsonb, which refuses \u0000 in fields we do not know.
    event           json        NOT NULL
);

CREATE INDEX journal_by_key ON mooring.journal (source, idempotency_key);
CREATE INDEX journal_by_place ON mooring.journal (source, place);
CREATE INDEX journal_by_installation ON mooring.journal (installation_id);

-- What cannot be applied, whole and with its reason, so that it can be redriven.
CREATE TABLE mooring.dead_letters (
    stream_sequence  bigint      PRIMARY KEY,
    subject          text        NOT NULL,
    headers          jsonb       NOT NULL,
    body             bytea       NOT NULL,
    reason           text        NOT NULL,
    detail           text        NOT NULL,
    published_at     timestamptz NOT NULL,
    dead_lettered_at timestamptz NOT NULL DEFAULT now()
);

-- Who opened which credential, and when. Written before the secret is answered.
CREATE TABLE mooring.credential_access (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    accessed_at     timestamptz NOT NULL DEFAULT now(),
    caller          text        NOT NULL,
    source          text        NOT NULL,
    installation_id text        NOT NULL,
    generation      integer     NOT NULL,
    key_id          text        NOT NULL
);

CREATE INDEX credential_access_by_installation
    ON mooring.credential_access (source, installation_id, accessed_at);

CREATE TABLE projection.installations (
    source              text        NOT NULL,
    -- The app and where it is installed: at most one active installation in it.
    place               text        NOT NULL,
    installation_id     text        NOT NULL,
    platform            text        NOT NULL,
    app_id              text        NOT NULL,
    scope               jsonb       NOT NULL,
    generation          integer     NOT NULL,
    status              text        NOT NULL CHECK (status IN ('active', 'superseded', 'inactive', 'unconfirmed')),
    granted_permissions text[]      NOT NULL,
    credential_prefix   text,
    -- The sealed secret, and the event and field that it is bound to.
    credential_sealed   text,
    credential_event    text,
    credential_field    text,
    installed_at        timestamptz,
    uninstalled_at      timestamptz,
    superseded_by       text,
    last_event_sequence bigint      NOT NULL,
    last_event_type     text        NOT NULL,
    PRIMARY KEY (source, place, installation_id),
    CHECK ((status = 'inactive') = (uninstalled_at IS NOT NULL)),
    CHECK ((status = 'superseded') = (superseded_by IS NOT NULL)),
    CHECK (num_nulls(credential_sealed, credential_event, credential_field) IN (0, 3))
);

-- The rule of the fold, held by the database too.
CREATE UNIQUE INDEX installations_one_active_in_a_place
    ON projection.installations (source, place) WHERE status = 'active';
CREATE INDEX installations_by_id ON projection.installations (installation_id);
CREATE INDEX installations_by_status ON projection.installations (status, source);

-- The worker's role may do what the worker does and no more: it cannot change
-- the audit, nor delete events. Whoever runs the database creates the role.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT USAGE ON SCHEMA mooring, projection TO mooring_worker;
        GRANT SELECT, INSERT, UPDATE ON mooring.journal TO mooring_worker;
        GRANT SELECT, INSERT ON mooring.dead_letters TO mooring_worker;
        GRANT SELECT, INSERT ON mooring.credential_access TO mooring_worker;
        GRANT SELECT, INSERT, UPDATE ON projection.installations TO mooring_worker;
        GRANT SELECT ON _sqlx_migrations TO mooring_worker;
    END IF;
END
$$;
