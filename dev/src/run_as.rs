//! Postgres refuses to run as root. So when we are root, as in many containers, it runs as user
//! `postgres`, or as `nobody` where there is no such user, and owns its files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The user that Postgres runs as when we are root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunAs {
    name: String,
    uid: u32,
    gid: u32,
}

/// `None` when we are not root: Postgres then runs as the same user as we do.
pub(crate) fn unprivileged() -> Result<Option<RunAs>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let found = user(&users, "postgres").or_else(|| user(&users, "nobody"));
    let Some(found) = found else {
        bail!(
            "Postgres refuses to run as root, and /etc/passwd has no user `postgres` or `nobody`: add one, or run \
             this as another user"
        );
    };
    Ok(Some(found))
}

fn user(passwd: &str, name: &str) -> Option<RunAs> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        found.then(|| RunAs { name: name.to_owned(), uid, gid })
    })
}

impl RunAs {
    pub(crate) fn apply(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid); // this drops our supplementary groups, too
    }

    /// Makes the user the owner of a file or folder, but not of what is inside.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("giving {} to user {}", path.display(), self.name))
    }

    /// Fails unless the user can pass through every folder above `path`. The error names the first
    /// folder that stops the user, and `advice` says what to do.
    pub(crate) fn require_way_to(&self, path: &Path, advice: &str) -> Result<()> {
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        for folder in above.into_iter().filter(|folder| !folder.as_os_str().is_empty()) {
            let found =
                fs::metadata(folder).with_context(|| format!("looking at {}", folder.display()))?;
            if !self.may_pass(found.mode(), found.uid(), found.gid()) {
                bail!(
                    "Postgres runs as user `{}`, because it refuses root. That user cannot reach {}, because it \
                     may not enter {} (mode {:o}): {advice}",
                    self.name,
                    path.display(),
                    folder.display(),
                    found.mode() & 0o7777
                );
            }
        }
        Ok(())
    }

    fn may_pass(&self, mode: u32, owner: u32, group: u32) -> bool {
        let bit = if owner == self.uid {
            0o100
        } else if group == self.gid {
            0o010
        } else {
            0o001
        };
        mode & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";

    fn postgres() -> RunAs {
        user(PASSWD, "postgres").unwrap()
    }

    #[test]
    fn a_user_is_found_by_name() {
        assert_eq!(postgres(), RunAs { name: "postgres".to_owned(), uid: 101, gid: 104 });
        assert_eq!(user(PASSWD, "nobody"), None);
    }

    #[test]
    fn a_private_folder_of_another_user_is_no_way() {
        assert!(!postgres().may_pass(0o700, 0, 0));
        assert!(postgres().may_pass(0o711, 0, 0));
        assert!(postgres().may_pass(0o700, 101, 0));
        assert!(!postgres().may_pass(0o705, 0, 104)); // its group decides
    }
}
