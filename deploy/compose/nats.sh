#!/bin/sh
# Starts nats-server. nats.conf takes the passwords from the environment; they are read from files
# here, so that neither the compose file nor `docker inspect` shows them.
set -eu

# Letters and digits only (secrets.sh), so they need no quotes in the configuration.
MOORING_NATS_ADMIN_PASSWORD=$(cat /run/secrets/nats-admin-password)
MOORING_NATS_INGEST_PASSWORD=$(cat /run/secrets/nats-ingest-password)
MOORING_NATS_WORKER_PASSWORD=$(cat /run/secrets/nats-worker-password)
MOORING_NATS_RENEWER_PASSWORD=$(cat /run/secrets/nats-renewer-password)
MOORING_NATS_ARCHIVER_PASSWORD=$(cat /run/secrets/nats-archiver-password)
MOORING_NATS_APP_PASSWORD=$(cat /run/secrets/nats-app-password)
export MOORING_NATS_ADMIN_PASSWORD MOORING_NATS_INGEST_PASSWORD MOORING_NATS_WORKER_PASSWORD \
  MOORING_NATS_RENEWER_PASSWORD MOORING_NATS_ARCHIVER_PASSWORD MOORING_NATS_APP_PASSWORD

exec nats-server -c /etc/nats/nats.conf
