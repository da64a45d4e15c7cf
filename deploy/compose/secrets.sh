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
. /make-secrets.sh

services_user=65532 # `user:` of nats, migrate, ingest and worker in docker-compose.yml
postgres_user=70

main() {
  case ${1:-make} in
    make)
      make_secrets /master /data/nats
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
  # A new volume is root's, and so would be the folders above the mount of batches, but nats-server is not root.
  if [ ! -e /data/nats/jetstream ]; then
    streams='/data/nats/jetstream/$G/streams'
    mkdir -p "$streams/INSTALLATIONS"
    for folder in "$streams/INSTALLATIONS" "$streams" "${streams%/*}" /data/nats/jetstream; do
      chown "$services_user:$services_user" "$folder"
    done
  fi
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

# Data from before there were key pairs was sealed with a symmetric key, and has no private key to put back.
needs_old_one() {
  case $1 in
    nats-* | event-key-*) return 1 ;;
    sealing-private-key) [ -e "$store/jetstream" ] && { [ ! -e /master/sealing-key-k1 ] || [ -e /for/sealing/public-key ]; } ;;
    *) [ -e "$store/jetstream" ] ;;
  esac
}

main "$@"
