-- The roles and the database of Mooring. What is there already stays, and gets these passwords. `worker
-- migrate` makes the tables and grants `mooring_worker` its rights on them.

-- A statement that fails would stand in the server's log, with its password.
SET log_min_error_statement = panic;

\set owner_password `cat /run/secrets/postgres-owner-password`
\set worker_password `cat /run/secrets/postgres-worker-password`

SELECT format('CREATE ROLE %I LOGIN', name) FROM (VALUES ('mooring_owner'), ('mooring_worker')) AS wanted (name)
WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE mooring_owner PASSWORD :'owner_password';
ALTER ROLE mooring_worker PASSWORD :'worker_password';

SELECT 'CREATE DATABASE mooring OWNER mooring_owner'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mooring') \gexec
REVOKE ALL ON DATABASE mooring FROM PUBLIC;
GRANT CONNECT ON DATABASE mooring TO mooring_worker;
