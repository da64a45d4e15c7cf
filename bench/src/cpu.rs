//! CPU time of processes, with their children, from /proc.

use std::fs;

/// Of the system's clock ticks; 100 on every Linux that we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU that the processes and all their descendants have used.
pub(crate) fn seconds(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| ticks(*pid)).sum::<f64>() / TICKS_PER_SECOND
}

fn ticks(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which is in parentheses and may hold spaces: proc(5).
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |index: usize| -> f64 {
        fields.get(index).and_then(|text| text.parse().ok()).unwrap_or_default()
    };
    // utime, stime, and those of children that have ended.
    let own: f64 = (11..=14).map(field).sum();
    own + children(pid).into_iter().map(ticks).sum::<f64>()
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The memory that a process has resident now, in MiB.
pub(crate) fn rss_mib(pid: u32) -> f64 {
    of_status(pid, "VmRSS:")
}

/// The most memory that a process ever had resident, in MiB.
pub(crate) fn peak_rss_mib(pid: u32) -> f64 {
    of_status(pid, "VmHWM:")
}

fn of_status(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
