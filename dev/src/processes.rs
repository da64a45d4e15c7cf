//! Other processes: signals to them, whether they run, and which children they have.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Sends a signal. It is no error if the process has ended already.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(raw) = to_pid(pid) else { return Ok(()) };
    match kill_process(raw, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("sending {signal:?} to process {pid}")),
    }
}

/// Whether the process still runs. A zombie does not: it holds no file, port or memory, and in a
/// container whose first process does not reap, it may stay for long.
pub(crate) fn alive(pid: u32) -> bool {
    if Path::new("/proc/self/stat").exists() {
        return fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| state_and_parent(&stat))
            .is_some_and(|(state, _)| state != 'Z' && state != 'X');
    }
    to_pid(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// The direct children of a process.
pub(crate) fn children(parent: u32) -> Result<Vec<u32>> {
    if Path::new("/proc/self/stat").exists() {
        return children_in_proc(parent);
    }
    let output = Command::new("ps")
        .args(["-A", "-o", "pid=,ppid="])
        .output()
        .context("listing processes with `ps`")?;
    Ok(children_in_list(&String::from_utf8_lossy(&output.stdout), parent))
}

fn children_in_proc(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let name = entry.context("listing /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // The process may have ended since it was listed.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if state_and_parent(&stat).is_some_and(|(_, of)| of == parent) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Reads `/proc/<pid>/stat`. The process's name comes before the state, in parentheses, and may contain
/// parentheses and spaces itself.
fn state_and_parent(stat: &str) -> Option<(char, u32)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

fn children_in_list(list: &str, parent: u32) -> Vec<u32> {
    list.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::parse::<u32>);
            let (pid, of) = (words.next()?.ok()?, words.next()?.ok()?);
            (of == parent).then_some(pid)
        })
        .collect()
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_is_read_past() {
        assert_eq!(state_and_parent("42 (a) b (c)) S 7 42 42 0"), Some(('S', 7)));
    }

    #[test]
    fn the_process_list_is_searched_by_parent() {
        assert_eq!(children_in_list("  1     0\n 20     1\n 21    20\n 22     1\n", 1), [20, 22]);
    }

    #[test]
    fn this_process_is_alive_and_pid_zero_is_not() {
        assert!(alive(std::process::id()));
        assert!(!alive(0));
    }
}
