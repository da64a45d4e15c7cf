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
