-- What a caller reaches is a source, or an app of one: each has an index of the change feed.
CREATE INDEX changes_by_source ON mooring.changes (source, position);
