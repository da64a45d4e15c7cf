-- Whether the fold of its place still needs this event, whatever comes later.
-- Only the fold may say no. A worker reads what is kept, and what has the key of
-- an event that comes; a rebuild reads everything.
ALTER TABLE mooring.journal ADD COLUMN kept boolean NOT NULL DEFAULT true;

CREATE INDEX journal_kept_by_place ON mooring.journal (source, place) WHERE kept;
