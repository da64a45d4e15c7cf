//! Ports on loopback.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail};

/// Below the ports that the system gives to outgoing connections (from 32768 on Linux), so no client
/// takes one between our check and the server's start.
const CANDIDATES: RangeInclusive<u16> = 10_000..=32_000;
const ATTEMPTS: usize = 100;

/// Lock files of the ports we gave out. They are locked while this process lives, so no other of our
/// processes gets the same port.
static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A free port that no other test gets while this process lives. Tests run side by side, and each
/// starts its servers some time after it asked for their ports.
pub fn free_port() -> Result<u16> {
    for _ in 0..ATTEMPTS {
        let port = rand::random_range(CANDIDATES);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && reserve(port)? {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1 was found in {ATTEMPTS} attempts");
}

fn reserve(port: u16) -> Result<bool> {
    let folder = std::env::temp_dir().join("mooring-ports");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(port.to_string());
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(file);
            Ok(true)
        }
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", path.display()))
        }
    }
}

/// A port, what needs it, and the flag that changes it.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    pub port: u16,
    pub by: &'static str,
    pub flag: &'static str,
}

/// Fails unless all ports are different and free.
pub fn require_all_free(needed: &[Needed]) -> Result<()> {
    for (index, one) in needed.iter().enumerate() {
        if let Some(other) = needed.iter().take(index).find(|other| other.port == one.port) {
            bail!(
                "port {} is given twice, for {} and for {}: change {} or {}",
                one.port,
                other.by,
                one.by,
                other.flag,
                one.flag
            );
        }
        require_free(one.port, one.by, one.flag)?;
    }
    Ok(())
}

/// Fails unless `port` can be listened on right now.
pub fn require_free(port: u16, needed_by: &str, flag: &str) -> Result<()> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(anyhow!(
            "port {port}, which {needed_by} needs, is in use: stop what uses it, or choose another with {flag}"
        )),
        Err(error) => Err(anyhow!(error).context(format!(
            "listening on port {port}, which {needed_by} needs: choose another with {flag}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_with_what_to_do() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = require_free(port, "ingest", "--ingest-port").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "port {port}, which ingest needs, is in use: stop what uses it, or choose another with --ingest-port"
            )
        );
    }

    #[test]
    fn a_free_port_is_accepted() {
        let port = free_port().unwrap();
        require_free(port, "ingest", "--ingest-port").unwrap();
    }

    #[test]
    fn one_port_for_two_services_is_refused() {
        let port = free_port().unwrap();
        let ingest = Needed { port, by: "ingest", flag: "--ingest-port" };
        let worker = Needed { port, by: "worker", flag: "--worker-port" };
        let error = require_all_free(&[ingest, worker]).unwrap_err().to_string();
        assert!(error.contains("given twice, for ingest and for worker"), "{error}");
    }
}
