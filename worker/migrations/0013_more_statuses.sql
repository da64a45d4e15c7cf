-- An installation that its platform has stopped is 'suspended'. One that had ended and then
-- got a secret that is none of those before is 'unverified'.
ALTER TABLE projection.installations
    DROP CONSTRAINT installations_status_check,
    ADD CONSTRAINT installations_status_check
        CHECK (status IN ('pending', 'active', 'suspended', 'superseded', 'inactive', 'unconfirmed',
                          'unverified'));

-- A projection of the former shape cannot be swapped in again.
DROP SCHEMA IF EXISTS projection_next CASCADE;
DROP SCHEMA IF EXISTS projection_previous CASCADE;
UPDATE mooring.rebuilds SET abandoned_at = now()
    WHERE swapped_at IS NULL AND abandoned_at IS NULL;
