//! What a process that holds keys does about itself.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// A crash must not write keys to a disk, nor may another process of the same
/// user read them out of our memory.
pub fn forbid_core_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
