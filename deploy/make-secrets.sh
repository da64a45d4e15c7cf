# For scripts that make the secrets of an installation: `. make-secrets.sh`, then
#
#   make_secrets FOLDER STORE    makes those that are missing in FOLDER; STORE is nats-server's folder
#
# POSIX shell, and programs that Debian and BusyBox have.

make_secrets() {
  folder=$1 store=$2
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
  printf %s "$(cat "$folder/read-token")" | sha256sum | cut -d ' ' -f 1 > "$folder/read-token-sha256"
  # An acknowledged event is on disk at once; the key that opens it must not come later.
  sync
}

# 256 random bits in base64.
random() {
  head -c 32 /dev/urandom | base64 | tr -d '\n'
}

# make NAME VALUE: unless it is there.
make() {
  [ ! -e "$folder/$1" ] || return 0
  ! needs_old_one "$1" || fail "the secret $1 is missing in $folder, and the data in $store was made with it: put it \
back, or start over without that data"
  [ ${#2} -ge 32 ] || fail "making $1: no randomness"
  echo "$2" > "$folder/$1.partial"
  mv "$folder/$1.partial" "$folder/$1" # complete or not there
}

# Whether a new secret of this name would be of no use: Postgres keeps the old passwords, and what is in the
# log was sealed with the old key. NATS keeps no password, nothing is sealed with an event key, and a newer
# version may have one more.
needs_old_one() {
  case $1 in
    nats-* | event-key-*) return 1 ;;
    *) [ -e "$store/jetstream" ] ;;
  esac
}

fail() {
  echo "secrets: $1" >&2
  exit 1
}
