#!/bin/sh
# nats.sh CONFIGURATION: starts nats-server. nats.conf takes the passwords from the environment; they
# are read from files here, so that neither `docker inspect` nor `systemctl show` shows them.
set -eu

folder=${CREDENTIALS_DIRECTORY:-/run/secrets}
# Letters and digits only (make-secrets.sh), so they need no quotes in the configuration.
MOORING_NATS_ADMIN_PASSWORD=$(cat "$folder/nats-admin-password")
MOORING_NATS_INGEST_PASSWORD=$(cat "$folder/nats-ingest-password")
MOORING_NATS_WORKER_PASSWORD=$(cat "$folder/nats-worker-password")
MOORING_NATS_RENEWER_PASSWORD=$(cat "$folder/nats-renewer-password")
MOORING_NATS_ARCHIVER_PASSWORD=$(cat "$folder/nats-archiver-password")
MOORING_NATS_APP_PASSWORD=$(cat "$folder/nats-app-password")
export MOORING_NATS_ADMIN_PASSWORD MOORING_NATS_INGEST_PASSWORD MOORING_NATS_WORKER_PASSWORD \
  MOORING_NATS_RENEWER_PASSWORD MOORING_NATS_ARCHIVER_PASSWORD MOORING_NATS_APP_PASSWORD

exec nats-server -c "$1"
