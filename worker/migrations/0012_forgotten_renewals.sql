-- Renewed tokens leave the journal once they are archived, replaced and needed by no
-- fold any more: an installation whose token lasts an hour has 8,760 a year. The
-- worker's role may delete nothing else, so a function of the owner does it.
CREATE FUNCTION mooring.forget_renewals(first_position bigint, last_position bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH forgotten AS (
        DELETE FROM mooring.journal AS old
        WHERE old.stream_sequence BETWEEN first_position AND last_position
          AND old.event_type = 'authorized'
          AND old.event #>> '{fact,grant}' IN ('refresh_token', 'location')
          AND NOT old.kept
          -- It was compared with the archive, and the log was trimmed.
          AND EXISTS (SELECT FROM mooring.archived_segments AS segment
                      WHERE old.stream_sequence BETWEEN segment.first_sequence AND segment.last_sequence
                        AND segment.trimmed_at IS NOT NULL)
          AND EXISTS (SELECT FROM mooring.journal AS newer
                      WHERE newer.source = old.source AND newer.place = old.place
                        AND newer.installation_id = old.installation_id
                        AND newer.event_type = 'authorized' AND newer.kept
                        AND newer.stream_sequence > old.stream_sequence)
        RETURNING 1)
    SELECT count(*) FROM forgotten
$$;
REVOKE ALL ON FUNCTION mooring.forget_renewals FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'mooring_worker') THEN
        GRANT EXECUTE ON FUNCTION mooring.forget_renewals TO mooring_worker;
    END IF;
END
$$;
