//! Makes a Postgres cluster on disk, with our roles and the database `mooring`, before a server ever
//! listens.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::credentials::PostgresPasswords;
use crate::run_as::RunAs;
use crate::tools::PostgresTools;

/// What is needed to run one of Postgres' programs.
pub(crate) struct Programs {
    pub(crate) tools: PostgresTools,
    pub(crate) run_as: Option<RunAs>,
}

impl Programs {
    /// A command that runs as the right user and does not see the caller's `PG…` variables.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Postgres looks at its working directory at start, and its user may not be allowed into ours.
        command.current_dir("/");
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG"))
        {
            command.env_remove(name);
        }
        if let Some(run_as) = &self.run_as {
            run_as.apply(&mut command);
        }
        command
    }

    fn give(&self, path: &Path) -> Result<()> {
        self.run_as.as_ref().map_or(Ok(()), |run_as| run_as.give(path))
    }
}

/// Makes `<dir>/cluster` unless it exists. It is built under another name and renamed when it is
/// complete, so a start that is cut short leaves no cluster without roles.
pub(crate) fn ensure(
    programs: &Programs,
    dir: &Path,
    passwords: &PostgresPasswords,
) -> Result<PathBuf> {
    let cluster = dir.join("cluster");
    if cluster.exists() {
        require_same_major(&cluster, programs.tools.major)?;
        return Ok(cluster);
    }
    let partial = dir.join("cluster.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    initialise(programs, &partial, passwords)?;
    run_sql(programs, &partial, &roles_and_database(passwords))?;
    fs::rename(&partial, &cluster)
        .with_context(|| format!("renaming the new {}", cluster.display()))?;
    Ok(cluster)
}

fn require_same_major(cluster: &Path, installed: u32) -> Result<()> {
    let file = cluster.join("PG_VERSION");
    let made_by =
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    if made_by.trim() != installed.to_string() {
        bail!(
            "{} was made by Postgres {major}, but Postgres {installed} is installed: put {major} in PATH, or \
             delete the data with `cargo dev reset`",
            cluster.display(),
            major = made_by.trim(),
        );
    }
    Ok(())
}

fn initialise(programs: &Programs, cluster: &Path, passwords: &PostgresPasswords) -> Result<()> {
    let password_file = cluster.with_extension("password");
    drop(fs::remove_file(&password_file)); // left by a start that was cut short
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&password_file)
        .with_context(|| format!("creating {}", password_file.display()))?;
    file.write_all(passwords.superuser.as_bytes()).context("writing the password for initdb")?;
    programs.give(&password_file)?;

    let output = programs
        .command(&programs.tools.initdb())
        .arg("-D")
        .arg(cluster)
        // Locale C sorts the same on every machine and needs no locale package.
        .args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
        .arg(format!("--pwfile={}", password_file.display()))
        .output();
    fs::remove_file(&password_file)
        .with_context(|| format!("removing {}", password_file.display()))?;
    require_success("initdb", &output.context("running initdb")?)
}

/// Runs SQL without a server and without a client: Postgres in single-user mode reads it from stdin.
fn run_sql(programs: &Programs, cluster: &Path, statements: &[String]) -> Result<()> {
    let mut command = programs.command(&programs.tools.postgres());
    let mut child = command
        .arg("--single")
        .arg("-D")
        .arg(cluster)
        .args(["-j", "-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "postgres"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running postgres --single")?;
    // With `-j` a statement ends at a semicolon followed by an empty line.
    let script: String = statements.iter().map(|statement| format!("{statement};\n\n")).collect();
    let mut stdin = child.stdin.take().context("stdin of postgres --single is piped")?;
    // It stops reading at the first error, which its output explains better than our broken pipe.
    let written = stdin.write_all(script.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().context("waiting for postgres --single")?;
    require_success("postgres --single (creating roles and the database)", &output)?;
    written.context("writing SQL to postgres --single")
}

fn require_success(what: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "{what} failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
}

/// The passwords were checked to be letters and digits, so they need no escaping. The migrations give
/// `mooring_worker` its rights on tables.
fn roles_and_database(passwords: &PostgresPasswords) -> Vec<String> {
    vec![
        format!("CREATE ROLE mooring_owner LOGIN PASSWORD '{}'", passwords.owner),
        format!("CREATE ROLE mooring_worker LOGIN PASSWORD '{}'", passwords.worker),
        "CREATE DATABASE mooring OWNER mooring_owner".to_owned(),
        "REVOKE ALL ON DATABASE mooring FROM PUBLIC".to_owned(),
        "GRANT CONNECT ON DATABASE mooring TO mooring_worker".to_owned(),
    ]
}
