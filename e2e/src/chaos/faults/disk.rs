//! A state disk that fails: full, or slow. What the agent must have on its disk it writes with `fsync`, so that call is
//! answered as such a disk answers it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Breaker;

/// What happens to the calls of an agent that write to its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    Full,
    Slow,
}

impl Disk {
    fn injection(self) -> &'static str {
        match self {
            Self::Full => "inject=fsync:error=ENOSPC",
            // Microseconds. A table is two of them.
            Self::Slow => "inject=fsync:delay_enter=700000",
        }
    }
}

impl Breaker<'_> {
    /// Lets the writes of a node's agent fail, or take long, until the time is over or the agent ends.
    pub(super) fn disturb_disk(&self, node: &str, disk: Disk, hold: Duration) -> Result<()> {
        for worker in self.agents(node, true)? {
            let mut command = Command::new("timeout");
            command.arg(hold.as_secs().to_string());
            command.args(["strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=fsync"]);
            command.args(["-e", disk.injection(), "-p", &worker.pid.to_string()]);
            let said = command.output()?;
            // The time was over, or the agent had ended.
            if !matches!(said.status.code(), Some(0 | 124)) {
                bail!("{disk:?}: {}", String::from_utf8_lossy(&said.stderr));
            }
        }
        Ok(())
    }
}
