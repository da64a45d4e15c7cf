//! The units of `deploy/systemd`. `deploy/systemd/check` runs them under a real systemd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

fn deploy(path: &str) -> PathBuf {
    dev::workspace_root().join("deploy").join(path)
}

struct Unit {
    name: &'static str,
    text: String,
}

impl Unit {
    fn read(name: &'static str) -> Self {
        let text = fs::read_to_string(deploy(&format!("systemd/mooring-{name}.service"))).unwrap();
        Self { name, text }
    }

    fn values<'a>(&'a self, setting: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter_map(move |line| line.strip_prefix(setting)?.strip_prefix('='))
    }

    /// Its credentials, made by `make`, where systemd would put them.
    fn credentials(&self, made: &Path) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for credential in self.values("LoadCredential") {
            let (name, path) = credential.split_once(':').unwrap();
            assert_eq!(path, format!("/etc/mooring/credentials/{name}"), "{}", self.name);
            fs::copy(made.join(name), folder.path().join(name)).unwrap();
        }
        folder
    }
}

/// What `mooring-setup` makes, but for the database.
fn made() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -eu; . {}; make_secrets {} /no/such/folder",
        deploy("make-secrets.sh").display(),
        folder.path().display()
    );
    let made = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let worker = dev::services::binary("worker").unwrap();
    let keys = Command::new(worker)
        .args(["keys", "public", "--file"])
        .arg(folder.path().join("sealing-private-key"))
        .arg("--to")
        .arg(folder.path().join("sealing-public-key"))
        .output()
        .unwrap();
    assert!(keys.status.success(), "{keys:?}");
    folder
}

/// `--check-config` of a service, as its unit runs it.
fn checked(unit: &Unit, made: &Path, without: Option<&str>) -> (bool, String) {
    let credentials = unit.credentials(made);
    if let Some(name) = without {
        fs::remove_file(credentials.path().join(name)).unwrap();
    }
    let config = fs::read_to_string(deploy("systemd/mooring.toml")).unwrap();
    let config = config.replace("/etc/mooring", &made.to_string_lossy());
    fs::write(made.join("mooring.toml"), config).unwrap();
    let mut command = Command::new(dev::services::binary(unit.name).unwrap());
    command.args(["run", "--check-config"]).env_clear();
    for assignment in unit.values("Environment").flat_map(str::split_whitespace) {
        let (name, value) = assignment.split_once('=').unwrap();
        command.env(name, value);
    }
    command.env("MOORING_CONFIG", made.join("mooring.toml"));
    command.env("CREDENTIALS_DIRECTORY", credentials.path());
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_credentials_of_a_unit_are_enough_for_its_service() {
    let made = made();
    for unit in [Unit::read("ingest"), Unit::read("worker")] {
        let (usable, said) = checked(&unit, made.path(), None);
        assert!(usable, "{}: {said}", unit.name);
    }
    let (usable, said) = checked(&Unit::read("ingest"), made.path(), Some("blnk-path-token"));
    assert!(!usable && said.contains("blnk-path-token cannot be read"), "{said}");
}

#[test]
fn ingest_is_given_nothing_that_opens_a_secret() {
    let ingest = Unit::read("ingest");
    assert!(ingest.values("LoadCredential").all(|it| !it.contains("private")), "{}", ingest.text);
}

#[test]
fn each_unit_is_hardened() {
    let version = Command::new("systemd-analyze").arg("--version").output();
    let version = version.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    let version = version.ok().and_then(|it| it.split(' ').nth(1)?.parse::<u32>().ok());
    // `--offline` and `--root`.
    if version.is_none_or(|version| version < 250) {
        eprintln!("not tested: there is no systemd-analyze, or it is older than 250");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let units = root.path().join("etc/systemd");
    fs::create_dir_all(&units).unwrap();
    symlink(deploy("systemd"), units.join("system")).unwrap();
    for unit in ["nats", "migrate", "ingest", "worker"] {
        let rated = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=20", "--no-pager"])
            .arg(format!("--root={}", root.path().display()))
            .arg(format!("mooring-{unit}.service"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&rated.stdout);
        assert!(said.contains(&format!("mooring-{unit}.service: ")), "{rated:?}");
        assert!(rated.status.success(), "{said}");
    }
}
