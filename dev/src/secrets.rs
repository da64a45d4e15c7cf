//! Secrets of the development environment. They are made once and kept in files that only we can read.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::credentials::{NatsCredentials, PostgresPasswords, new_password};
use crate::durable;

/// A secret's file name, and how it is made.
type Kind = (&'static str, fn() -> String);

const ALL: [Kind; 20] = [
    (PRIVATE_KEY, new_private_key),
    ("fingerprint-key", new_key),
    ("event-key-ingest", new_key),
    ("event-key-token-renewal", new_key),
    ("nats-admin-password", new_password),
    ("nats-ingest-password", new_password),
    ("nats-worker-password", new_password),
    ("nats-renewer-password", new_password),
    ("nats-archiver-password", new_password),
    ("nats-app-password", new_password),
    ("postgres-superuser-password", new_password),
    ("postgres-owner-password", new_password),
    ("postgres-worker-password", new_password),
    ("blnk-path-token", new_token),
    (READ_TOKEN, new_token),
    ("highlevel-signing-seed", new_key),
    ("securityscorecard-path-token", new_token),
    ("github-webhook-secret", new_token),
    ("whop-webhook-secret", new_webhook_secret),
    ("marketplace-secret", new_token),
];

const READ_TOKEN: &str = "read-token";
/// What the worker has of it.
pub(crate) const READ_TOKEN_HASH: &str = "read-token-sha256";
/// The private half of the key pair that data keys are sealed to.
pub const PRIVATE_KEY: &str = "sealing-private-key";
/// Its public half: no secret, but made from one.
pub const PUBLIC_KEY: &str = "sealing-public-key";
/// A symmetric key, where `up` has made one before there were key pairs.
pub const SYMMETRIC_KEY: &str = "sealing-key-k1";

/// The secrets that stored data depends on, by how their names begin. The others can be made again:
/// NATS stores none of its users' passwords, and nothing stores a caller's token.
const IN_DATA: [&str; 3] = ["sealing-", "fingerprint-", "postgres-"];

/// The folder of secrets, with all of them in it.
pub struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    /// Makes the secrets that are missing or empty. Where data depends on one it fails instead: the
    /// cluster keeps the old password, and what is in the log was sealed with the old key.
    pub fn ensure(folder: PathBuf, data_exists: bool) -> Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.with_context(|| format!("creating {}", folder.display()))?;
        folder.parent().map_or(Ok(()), durable::sync_folder)?;
        let secrets = Self { folder };
        if data_exists {
            secrets.require_what_data_depends_on()?;
        }
        for (name, generate) in ALL {
            if secrets.fault(name)?.is_some() {
                durable::write(&secrets.path(name), &generate())?;
            }
        }
        let hash = hex::encode(Sha256::digest(secrets.read(READ_TOKEN)?));
        durable::write(&secrets.path(READ_TOKEN_HASH), &hash)?;
        Ok(secrets)
    }

    fn require_what_data_depends_on(&self) -> Result<()> {
        let mut faults = Vec::new();
        for (name, _) in ALL {
            // Data from before key pairs was made without one.
            let is_new = name == PRIVATE_KEY
                && self.fault(SYMMETRIC_KEY)?.is_none()
                && self.fault(PUBLIC_KEY)?.is_some();
            if !is_new && IN_DATA.iter().any(|kind| name.starts_with(kind)) {
                faults.extend(self.fault(name)?.map(|fault| format!("{name} is {fault}")));
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        bail!(
            "{} in {}, and the data was made with them: put back a copy of these files, or delete the data with \
             `cargo dev reset`",
            faults.join(", "),
            self.folder.display()
        );
    }

    /// What is wrong with a secret's file. An earlier version did not sync what it wrote, so a
    /// power cut left empty files.
    fn fault(&self, name: &str) -> Result<Option<&'static str>> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some("missing")),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
            Ok(text) => Ok(text.trim().is_empty().then_some("empty")),
        }
    }

    /// The folder of secrets that an `up` made earlier.
    #[must_use]
    pub fn existing(folder: PathBuf) -> Self {
        Self { folder }
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    pub fn nats(&self) -> Result<NatsCredentials> {
        Ok(NatsCredentials {
            admin: self.read("nats-admin-password")?,
            ingest: self.read("nats-ingest-password")?,
            worker: self.read("nats-worker-password")?,
            renewer: self.read("nats-renewer-password")?,
            archiver: self.read("nats-archiver-password")?,
            app: self.read("nats-app-password")?,
        })
    }

    pub fn postgres(&self) -> Result<PostgresPasswords> {
        Ok(PostgresPasswords {
            superuser: self.read("postgres-superuser-password")?,
            owner: self.read("postgres-owner-password")?,
            worker: self.read("postgres-worker-password")?,
        })
    }
}

/// 256 random bits in base64, the form in which keys are configured.
#[must_use]
pub fn new_key() -> String {
    STANDARD.encode(rand::random::<[u8; 32]>())
}

/// The private half of a key pair: any 256 random bits are one (RFC 7748, section 5).
fn new_private_key() -> String {
    format!("x25519-private.{}", new_token())
}

/// 256 random bits in base64url, which is safe in a URL's path.
#[must_use]
pub fn new_token() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// A secret in the form that Standard Webhooks prescribes.
fn new_webhook_secret() -> String {
    format!("whsec_{}", new_key())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn secrets_are_private_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets");
        let first = Secrets::ensure(path.clone(), false).unwrap().read(PRIVATE_KEY).unwrap();
        let again = Secrets::ensure(path.clone(), true).unwrap();
        assert_eq!(again.read(PRIVATE_KEY).unwrap(), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&again.path(PRIVATE_KEY)), 0o600);
    }

    #[test]
    fn a_secret_that_data_depends_on_is_not_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets");
        Secrets::ensure(path.clone(), false).unwrap();
        fs::remove_file(path.join(PRIVATE_KEY)).unwrap();
        let error = Secrets::ensure(path, true).err().unwrap().to_string();
        assert!(error.contains("sealing-private-key is missing"), "{error}");
    }

    #[test]
    fn an_empty_secret_that_data_depends_on_is_reported_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets");
        Secrets::ensure(path.clone(), false).unwrap();
        fs::write(path.join(PRIVATE_KEY), "").unwrap();
        let error = Secrets::ensure(path, true).err().expect("an empty key was accepted");
        let error = error.to_string();
        assert!(error.contains("sealing-private-key is empty"), "{error}");
        assert!(error.contains("`cargo dev reset`"), "{error}");
    }

    #[test]
    fn an_empty_secret_is_made_again_when_no_data_depends_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets");
        Secrets::ensure(path.clone(), false).unwrap();
        for (name, data_exists) in [(PRIVATE_KEY, false), ("read-token", true)] {
            fs::write(path.join(name), "").unwrap();
            let secrets = Secrets::ensure(path.clone(), data_exists).unwrap();
            assert!(!secrets.read(name).unwrap().is_empty(), "{name} is still empty");
        }
    }

    #[test]
    fn keys_and_tokens_are_32_bytes() {
        assert_eq!(STANDARD.decode(new_key()).unwrap().len(), 32);
        assert_eq!(URL_SAFE_NO_PAD.decode(new_token()).unwrap().len(), 32);
    }
}
