//! How commands run cargo and other programs on the terminal.

use std::env;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use dev::services::Profile;
use dev::{interrupt, workspace_root};

/// How long a program may take to end after it was asked to stop. Then it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The cargo that runs us, at the workspace's root.
pub(super) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()).args(args);
    // Cargo sets these for us. Build scripts that watch them would run again.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_")
            || name.to_string_lossy().starts_with("CARGO_MANIFEST_")
        {
            command.env_remove(&name);
        }
    }
    command
}

/// A build of some of our programs. `--workspace` selects features, not programs: no dependency is
/// compiled a second time for another command that selects other programs.
pub(super) fn build(programs: &[&str], profile: Profile) -> Command {
    let mut command = cargo(&["build", "--locked", "--workspace"]);
    command.args(programs.iter().flat_map(|program| ["--bin", program]));
    if profile == Profile::Release {
        command.arg("--release");
    }
    command
}

/// Runs a program on our own terminal. After Ctrl-C it still waits for the program to end.
pub(super) fn run_here(command: &mut Command) -> Result<ExitStatus> {
    let name = command.get_program().display().to_string();
    let mut child = command.spawn().with_context(|| format!("running {name}"))?;
    wait_for(&mut child).with_context(|| format!("waiting for {name}"))
}

/// Runs cargo, and fails unless it succeeds.
pub(super) fn require(command: &mut Command) -> Result<()> {
    let status = run_here(command)?;
    if interrupt::requested() {
        bail!("interrupted");
    }
    if !status.success() {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        bail!("`cargo {}` failed ({status}): see its output above", args.join(" "));
    }
    Ok(())
}

/// The program's own exit code. It has none if a signal ended it.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn wait_for(child: &mut Child) -> Result<ExitStatus> {
    let mut interrupted_at: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt::requested() {
            match interrupted_at {
                None => {
                    interrupt::pass_on(child.id())?;
                    interrupted_at = Some(Instant::now());
                }
                Some(since) if since.elapsed() > STOP_DEADLINE => child.kill()?,
                Some(_) => {}
            }
        }
        #[expect(clippy::disallowed_methods, reason = "no runtime is here")]
        thread::sleep(POLL_INTERVAL);
    }
}
