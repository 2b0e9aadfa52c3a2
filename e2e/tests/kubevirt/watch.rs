//! Pings of a machine, one each tenth of a second, from everywhere at once: what was lost, and for how long.

use crate::machine::Machine;
use crate::stage::{Place, Stage};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fmt;

/// So many pings of 0.1 s may be lost during a fault that does not concern the machine: a busy host's hiccup.
const HICCUP: u32 = 3;

/// Pings that run.
pub(crate) struct Watch<'s> {
    stage: &'s Stage,
    address: String,
    pids: Vec<(Place, String)>,
}

/// What one place saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) place: Place,
    pub(crate) sent: u32,
    pub(crate) lost: u32,
    /// The longest run of lost ones.
    pub(crate) longest: u32,
    pub(crate) doubled: u32,
}

impl<'s> Watch<'s> {
    /// Begins everywhere.
    pub(crate) fn begin(stage: &'s Stage, address: &str) -> Result<Self> {
        Self::from(stage, address, &Place::ALL)
    }

    /// Begins at these places.
    pub(crate) fn from(stage: &'s Stage, address: &str, places: &[Place]) -> Result<Self> {
        let mut pids = Vec::new();
        for &place in places {
            // Not exec: the shell's own number would be another one.
            let script = format!("ping -i 0.1 -W 1 {address} >{} 2>&1 & echo $!", log(place, address));
            let pid = stage.shell(place, &script)?.trim().to_owned();
            pids.push((place, pid));
        }
        Ok(Self { stage, address: address.to_owned(), pids })
    }

    /// Ends, and counts.
    pub(crate) fn end(self) -> Result<Vec<Seen>> {
        let mut all = Vec::new();
        for (place, pid) in &self.pids {
            let log = log(*place, &self.address);
            let script = format!(
                // Nobody takes the dead of a pod without a shell: what is waited for is the summary.
                "kill -INT {pid}; until grep -q transmitted {log}; do sleep 0.1; done; cat {log}"
            );
            let text = self.stage.shell(*place, &script)?;
            all.push(count(*place, &text).with_context(|| format!("read what ping said: {text}"))?);
        }
        Ok(all)
    }
}

/// Frames of 1400 bytes, fifty a second from each place, and their answers, beside the pings that are counted.
pub(crate) struct Traffic<'s> {
    stage: &'s Stage,
    pids: Vec<(Place, String)>,
}

impl<'s> Traffic<'s> {
    /// Begins everywhere.
    pub(crate) fn begin(stage: &'s Stage, machine: &Machine) -> Result<Self> {
        let mut traffic = Self { stage, pids: Vec::new() };
        for place in Place::ALL {
            let script =
                format!("ping -q -i 0.02 -s 1372 {} >/dev/null 2>&1 & echo $!", machine.addresses()[0]);
            traffic.pids.push((place, stage.shell(place, &script)?.trim().to_owned()));
        }
        Ok(traffic)
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        for (place, pid) in &self.pids {
            if let Err(error) = self.stage.shell(*place, &format!("kill {pid}")) {
                println!("end the traffic of {place:?}: {error:#}");
            }
        }
    }
}

/// Does something under a running machine while everybody pings it, and returns what each place saw. No frame may arrive twice.
pub(crate) fn under(
    stage: &Stage,
    machine: &Machine,
    what: &str,
    fault: impl FnOnce() -> Result<()>,
) -> Result<Vec<Seen>> {
    under_from(stage, machine, &Place::ALL, what, fault)
}

/// As [`under`], where not everybody can ping throughout.
pub(crate) fn under_from(
    stage: &Stage,
    machine: &Machine,
    places: &[Place],
    what: &str,
    fault: impl FnOnce() -> Result<()>,
) -> Result<Vec<Seen>> {
    let watch = Watch::from(stage, &machine.addresses()[0], places)?;
    fault().with_context(|| what.to_owned())?;
    stage.wait_reached(machine)?;
    let seen = watch.end()?;
    let shown: Vec<String> = seen.iter().map(ToString::to_string).collect();
    println!("{what:24} {}", shown.join("; "));
    ensure!(seen.iter().all(|seen| seen.doubled == 0), "{what}: frames were doubled: {}", shown.join("; "));
    Ok(seen)
}

/// As [`under`], for what does not concern the machine.
pub(crate) fn unnoticed(
    stage: &Stage,
    machine: &Machine,
    what: &str,
    fault: impl FnOnce() -> Result<()>,
) -> Result<()> {
    for seen in under(stage, machine, what, fault)? {
        ensure!(seen.lost <= HICCUP, "{what}: {seen}");
    }
    Ok(())
}

fn log(place: Place, address: &str) -> String {
    format!("/tmp/macvtap-ping-{place:?}-{}", address.replace(':', "-"))
}

/// Counts from the summary what it contains: a ping that is interrupted while it writes a line writes that line twice, which
/// is not a frame that arrived twice.
fn count(place: Place, text: &str) -> Result<Seen> {
    let number = |line: &str| -> Option<u32> { line.split("seq=").nth(1)?.split(' ').next()?.parse().ok() };
    let answers: BTreeSet<u32> = text.lines().filter_map(number).collect();
    let last = *answers.last().context("not one answer")?;
    let mut missing = 0;
    let mut longest = 0;
    let mut run = 0;
    for sequence in 0..last {
        run = if answers.contains(&sequence) { 0 } else { run + 1 };
        missing += u32::from(run > 0);
        longest = longest.max(run);
    }
    // What was sent after the last answer is lost too, except for those that are still on their way.
    let sent = summary(text, "packets transmitted").context("ping gave no summary")?;
    let tail = sent.saturating_sub(last + 1);
    let tail = if tail > 2 { tail } else { 0 };
    // Absent where there are none.
    let doubled = summary(text, "duplicates").unwrap_or(0);
    Ok(Seen { place, sent, lost: missing + tail, longest: longest.max(tail), doubled })
}

/// A number of the line `12 packets transmitted, 11 packets received, 2 duplicates, 8% packet loss`.
fn summary(text: &str, name: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.contains(" packets transmitted"))?;
    line.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse().ok())
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, sent, lost, longest, doubled } = self;
        write!(f, "{place:?}: {lost} of {sent} lost, {longest} in a row, {doubled} doubled")
    }
}

/// As busybox wrote it when it was interrupted in the middle of writing its last line.
#[test]
fn a_line_that_ping_wrote_twice_is_not_a_doubled_frame() -> Result<()> {
    let text = "64 bytes from 10.90.0.71: seq=0 ttl=64 time=0.023 ms\n\
        64 bytes from 10.90.0.71: seq=3 ttl=64 time=0.024 ms\n\
        64 bytes from 10.90.0.71: seq=3 ttl=64 time=0.024 ms\n\n\
        --- 10.90.0.71 ping statistics ---\n\
        4 packets transmitted, 2 packets received, 50% packet loss\n";
    let seen = count(Place::N1, text)?;
    assert_eq!((seen.sent, seen.lost, seen.longest, seen.doubled), (4, 2, 2, 0));
    let doubled = text.replace("2 packets received, ", "2 packets received, 1 duplicates, ");
    assert_eq!(count(Place::N1, &doubled)?.doubled, 1);
    Ok(())
}
