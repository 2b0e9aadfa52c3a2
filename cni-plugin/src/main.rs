//! `macvtap`: environment and standard input in, standard output and exit code out.

use macvtap_cni::protocol::environment::ProcessVariables;
use std::io::{self, Read, Write};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// A configuration is a few kilobytes; nobody needs more than this.
const STDIN_MAX: u64 = 4 << 20;

fn main() -> ExitCode {
    if let Some(code) = macvtap_cni::ipam::supervise(std::env::args_os().skip(1)) {
        return code;
    }
    if let Some(code) = macvtap_cni::follow::follow_if_asked(std::env::args_os().skip(1)) {
        return code;
    }
    macvtap_cni::ipam::keep_mask(macvtap::file::set_mask());
    let mut stdin = Vec::new();
    let read = io::stdin().lock().take(STDIN_MAX + 1).read_to_end(&mut stdin);
    let read = read.and_then(|length| match u64::try_from(length) {
        Ok(0..=STDIN_MAX) => Ok(stdin),
        _ => Err(io::Error::other(format!("it is longer than {STDIN_MAX} bytes"))),
    });
    let outcome = macvtap_cni::run(&ProcessVariables, read.as_deref());
    let mut stdout = io::stdout().lock();
    let written = match &outcome.output {
        Some(json) => writeln!(stdout, "{json}").and_then(|()| stdout.flush()),
        None => Ok(()),
    };
    if written.is_err() && !outcome.failed {
        macvtap_cni::take_back(&ProcessVariables, read.as_deref());
    }
    if outcome.failed || written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
