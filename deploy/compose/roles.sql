-- Runs once, when the cluster is made: the roles and the database of Mooring. `worker migrate`
-- makes the tables and grants `mooring_worker` its rights on them.

-- A statement that fails would stand in the server's log, with its password.
SET log_min_error_statement = panic;

\set owner_password `cat /run/secrets/postgres-owner-password`
\set worker_password `cat /run/secrets/postgres-worker-password`

CREATE ROLE mooring_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE mooring_worker LOGIN PASSWORD :'worker_password';
CREATE DATABASE mooring OWNER mooring_owner;
REVOKE ALL ON DATABASE mooring FROM PUBLIC;
GRANT CONNECT ON DATABASE mooring TO mooring_worker;
