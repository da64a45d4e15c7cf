-- What some platforms say besides: plan, trial, whitelabel, company, user,
-- version. Query it as documented: details->>'plan_id', details->'trial'->>'ends_at'.
ALTER TABLE projection.installations ADD COLUMN details jsonb NOT NULL DEFAULT '{}';

CREATE INDEX installations_by_plan
    ON projection.installations ((details ->> 'plan_id'))
    WHERE details ->> 'plan_id' IS NOT NULL;
