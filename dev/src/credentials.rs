//! Who logs in to NATS and to Postgres, and with which password.

use anyhow::{Result, bail};

/// The passwords of the users in `deploy/nats/nats.conf`. No `Debug`: they are secrets.
#[derive(Clone)]
pub struct NatsCredentials {
    pub admin: String,
    pub ingest: String,
    pub worker: String,
    pub renewer: String,
    pub archiver: String,
    pub app: String,
}

impl NatsCredentials {
    /// Each user's name and password.
    pub(crate) fn users(&self) -> [(&'static str, &str); 6] {
        let Self { admin, ingest, worker, renewer, archiver, app } = self; // a seventh user stops the build here
        [
            ("admin", admin),
            ("ingest", ingest),
            ("worker", worker),
            ("renewer", renewer),
            ("archiver", archiver),
            ("app", app),
        ]
    }

    pub(crate) fn require_plain(&self) -> Result<()> {
        self.users().into_iter().try_for_each(|(user, password)| {
            require_plain(&format!("the password of NATS user {user}"), password)
        })
    }
}

/// Who connects to Postgres. No other role can log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `postgres`: makes and drops databases.
    Superuser,
    /// `mooring_owner`: owns the database and runs the migrations.
    Owner,
    /// `mooring_worker`: reads and writes rows, as far as the migrations grant it.
    Worker,
}

impl Role {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Superuser => "postgres",
            Self::Owner => "mooring_owner",
            Self::Worker => "mooring_worker",
        }
    }
}

/// The roles' passwords, set when the cluster is made and never changed. No `Debug`: they are
/// secrets.
#[derive(Clone)]
pub struct PostgresPasswords {
    pub superuser: String,
    pub owner: String,
    pub worker: String,
}

impl PostgresPasswords {
    #[must_use]
    pub fn generate() -> Self {
        Self { superuser: new_password(), owner: new_password(), worker: new_password() }
    }

    pub(crate) fn of(&self, role: Role) -> &str {
        match role {
            Role::Superuser => &self.superuser,
            Role::Owner => &self.owner,
            Role::Worker => &self.worker,
        }
    }

    pub(crate) fn require_plain(&self) -> Result<()> {
        [Role::Superuser, Role::Owner, Role::Worker].into_iter().try_for_each(|role| {
            require_plain(&format!("the password of Postgres role {}", role.name()), self.of(role))
        })
    }
}

/// A password of 128 random bits. It is a letter followed by letters and digits, so it needs no
/// quoting or escaping in SQL, in a URL or in a NATS configuration.
#[must_use]
pub fn new_password() -> String {
    format!("p{:032x}", rand::random::<u128>())
}

/// Fails unless a password has the form that [`new_password`] gives it. Does not show it.
fn require_plain(what: &str, password: &str) -> Result<()> {
    let begins_with_letter = password.starts_with(|first: char| first.is_ascii_alphabetic());
    if !begins_with_letter || !password.chars().all(|c| c.is_ascii_alphanumeric()) {
        bail!(
            "{what} must be ASCII letters and digits and begin with a letter: it goes into SQL and URLs unescaped"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_passwords_are_plain_and_others_are_refused_unshown() {
        require_plain("a password", &new_password()).unwrap();
        for bad in ["", "1abc", "a'b", "a b"] {
            let error = require_plain("a password", bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }
}
