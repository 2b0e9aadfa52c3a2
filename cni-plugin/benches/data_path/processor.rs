//! Processor time that a data path costs.

use std::fs;
use std::time::Duration;

/// What the kernel counts processor time in, for user space.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of this process and of the kernel's threads that continue what interrupts began.
pub(crate) fn used() -> Duration {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let kernel = processes.filter(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
    });
    let stats = kernel.map(|process| process.path()).chain(["/proc/self".into()]);
    let ticks: u32 = stats.filter_map(|path| ticks(&fs::read_to_string(path.join("stat")).ok()?)).sum();
    TICK * ticks
}

/// User and system time of a process.
fn ticks(stat: &str) -> Option<u32> {
    // The name in parentheses may have blanks; then come state and ten others.
    let fields = stat.rsplit_once(')')?.1;
    Some(fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum())
}
