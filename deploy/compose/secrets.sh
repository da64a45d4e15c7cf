#!/bin/sh
# Makes the secrets of this installation, once, and hands each service those that it needs.
#
#   make            what `docker compose up` runs
#   callback-url    prints the URL to register with Blnk
#   read-token      prints the bearer token of the read API
#
# Only this script sees /master; /for/NAME is mounted by the service NAME alone, and read-only.
set -eu
umask 077

services_user=65532 # `user:` of nats, migrate, ingest and worker in docker-compose.yml
postgres_user=70

main() {
  case ${1:-make} in
    make)
      make_all
      hand_out
      ;;
    callback-url)
      token=$(read_secret blnk-path-token)
      echo "http://127.0.0.1:$INGEST_PORT/callbacks/blnk/$token"
      ;;
    read-token) read_secret read-token ;;
    *) fail "unknown command '$1': expected make, callback-url or read-token" ;;
  esac
}

make_all() {
  # Letters and digits, a letter first: they mean themselves in SQL and in nats.conf.
  for name in nats-admin nats-ingest nats-worker nats-renewer nats-archiver nats-app postgres-superuser postgres-owner postgres-worker; do
    make "$name-password" "p$(random | tr -dc 'A-Za-z0-9')"
  done
  make sealing-private-key "x25519-private.$(random | tr '+/' '-_' | tr -d '=')"
  make fingerprint-key "$(random)"
  make event-key-ingest "$(random)"
  make blnk-path-token "$(random | tr '+/' '-_' | tr -d '=')" # base64url: it is put into a URL
  make read-token "$(random | tr '+/' '-_' | tr -d '=')"
  # The worker knows its callers by the hashes of their tokens.
  printf %s "$(cat /master/read-token)" | sha256sum | cut -d ' ' -f 1 > /master/read-token-sha256
  # An acknowledged event is on disk at once; the key that opens it must not come later.
  sync
}

# 256 random bits in base64.
random() {
  head -c 32 /dev/urandom | base64 | tr -d '\n'
}

# make NAME VALUE: unless it is there.
make() {
  [ ! -e "/master/$1" ] || return 0
  # Postgres keeps the old passwords, and what is in the log was sealed with the old key. NATS keeps no
  # password, nothing is sealed with an event key, and a newer version may have one more. Data from before there were key pairs was
  # sealed with a symmetric key, which is there.
  case $1 in
    nats-* | event-key-*) ;;
    *) { [ "$1" = sealing-private-key ] && [ -e /master/sealing-key-k1 ] && [ ! -e /for/sealing/public-key ]; } ||
      [ ! -e /data/nats/jetstream ] || fail "the secret $1 is missing, and the data beside it was made with it: put \
it back into the volume mooring_secrets, or start over with 'docker compose down --volumes'" ;;
  esac
  [ ${#2} -ge 32 ] || fail "making $1: no randomness"
  echo "$2" > "/master/$1.partial"
  mv "/master/$1.partial" "/master/$1" # complete or not there
}

hand_out() {
  give nats "$services_user" nats-admin-password nats-ingest-password nats-worker-password nats-renewer-password \
    nats-archiver-password nats-app-password
  give postgres "$postgres_user" postgres-superuser-password postgres-owner-password postgres-worker-password
  give migrate "$services_user" nats-admin-password postgres-owner-password
  give ingest "$services_user" nats-ingest-password fingerprint-key event-key-ingest blnk-path-token
  give worker "$services_user" nats-worker-password nats-renewer-password postgres-worker-password sealing-private-key fingerprint-key event-key-ingest \
    read-token-sha256
  [ ! -e /master/sealing-key-k1 ] || give worker "$services_user" sealing-key-k1
  # What was there before key pairs, and must not be any more.
  rm -f /for/ingest/sealing-key-k1
  # The service public-key writes there what it makes of the private half.
  chown "$services_user:$services_user" /for/sealing
  # A new volume is root's, but nats-server is not root.
  chown "$services_user:$services_user" /data/nats
}

# give SERVICE GROUP NAME...: copies that the service can read but not change.
give() {
  folder=/for/$1 group=$2
  shift 2
  chown "0:$group" "$folder"
  chmod 0750 "$folder"
  for name; do
    cp "/master/$name" "$folder/$name.partial"
    chown "0:$group" "$folder/$name.partial"
    chmod 0440 "$folder/$name.partial"
    mv "$folder/$name.partial" "$folder/$name"
  done
}

read_secret() {
  cat "/master/$1" 2>/dev/null || fail "there are no secrets yet: run 'docker compose up' first"
}

fail() {
  echo "secrets: $1" >&2
  exit 1
}

main "$@"
