-- Credentials that come apart from their install, such as the tokens of OAuth.

ALTER TABLE projection.installations
    -- When the access token ends.
    ADD COLUMN credential_expires_at timestamptz,
    DROP CONSTRAINT installations_status_check,
    ADD CONSTRAINT installations_status_check
        CHECK (status IN ('pending', 'active', 'superseded', 'inactive', 'unconfirmed'));

CREATE INDEX installations_by_credential_expiry
    ON projection.installations (credential_expires_at)
    WHERE credential_expires_at IS NOT NULL;

-- Locations that wait for a token of their company's.
CREATE INDEX installations_without_credential
    ON projection.installations (source, app_id, (scope ->> 'company_id'))
    WHERE credential_event IS NULL AND scope ? 'location_id';
CREATE INDEX installations_of_companies
    ON projection.installations (source, app_id, (scope ->> 'company_id'))
    WHERE scope ? 'company_id' AND NOT scope ? 'location_id';

-- A projection of the former shape cannot be swapped in again. `worker rebuild`
-- fills the new column for what is in the log already.
DROP SCHEMA IF EXISTS projection_next CASCADE;
DROP SCHEMA IF EXISTS projection_previous CASCADE;
UPDATE mooring.rebuilds SET abandoned_at = now()
    WHERE swapped_at IS NULL AND abandoned_at IS NULL;

-- Who renews which tokens: a row is claimed for a while before the platform is
-- asked, so that a refresh token is used by one worker only.
CREATE TABLE mooring.token_renewals (
    source          text        NOT NULL,
    place           text        NOT NULL,
    installation_id text        NOT NULL,
    -- Which tokens are renewed: the event that brought them.
    renewed_from    text        NOT NULL,
    attempts        integer     NOT NULL,
    -- Until then nobody else tries.
    not_before      timestamptz NOT NULL,
    -- Null until new tokens are in the log.
    renewed_at      timestamptz,
    -- Why the last attempt failed.
    problem         text,
    PRIMARY KEY (source, place, installation_id)
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT SELECT, INSERT, UPDATE ON mooring.token_renewals TO mooring_worker;
        GRANT SELECT ON mooring.erasures TO mooring_worker;
    END IF;
END
$$;
