//! The smallest guest behind a macvtap: it opens the tap as a virtual machine monitor does and speaks ARP, ICMP and
//! neighbour discovery, so that a test sees what a virtual machine would see. Needs no capability.

mod packet;
mod tap;

use anyhow::{Context, Result, bail};
use packet::{Guest, Heard};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tap::Tap;

const USAGE: &str = "usage: tapguest respond DEVICE MAC IPV4 IPV6
       tapguest ping DEVICE MAC IPV4 IPV6 TARGET COUNT [BYTES]
       tapguest ask DEVICE MAC IPV4 IPV6 COUNT LABEL=TARGET[,BYTES]...
       tapguest listen DEVICE SECONDS
DEVICE is a path, an interface of this namespace, or 'auto' for the only /dev/tap*; MAC '-' is the link's own";

/// How long one question or echo may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often an address is asked for.
const QUESTIONS: u32 = 5;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["respond", device, mac, v4, v6] => {
            guest(device, mac, v4, v6).and_then(|(tap, guest)| respond(&tap, &guest))
        }
        ["ping", device, mac, v4, v6, target, count, size @ ..] if size.len() < 2 => {
            guest(device, mac, v4, v6).and_then(|(tap, guest)| {
                let bytes = size.first().map_or(Ok(0), |size| size.parse()).context("BYTES")?;
                ping(&tap, &guest, target.parse().context("TARGET")?, count.parse().context("COUNT")?, bytes)
            })
        }
        ["ask", device, mac, v4, v6, count, questions @ ..] => {
            guest(device, mac, v4, v6).and_then(|(tap, guest)| ask(&tap, &guest, count, questions))
        }
        ["listen", device, seconds] => listen(device, seconds),
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("tapguest: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn guest(device: &str, mac: &str, v4: &str, v6: &str) -> Result<(Tap, Guest)> {
    let tap = Tap::open(device)?;
    let mac = if mac == "-" { tap.mac()? } else { tap::parse_mac(mac)? };
    let guest = Guest { mac, v4: v4.parse().context("IPV4")?, v6: v6.parse().context("IPV6")? };
    Ok((tap, guest))
}

fn respond(tap: &Tap, guest: &Guest) -> Result<()> {
    say(&format!("answering for {} and {}", guest.v4, guest.v6));
    loop {
        if let Some(answer) = tap.receive(None)?.and_then(|frame| guest.answer(&frame)) {
            tap.send(&answer)?;
        }
    }
}

fn ping(tap: &Tap, guest: &Guest, target: IpAddr, count: u16, bytes: usize) -> Result<()> {
    let mac = (0..QUESTIONS).find_map(|_| {
        tap.send(&guest.resolve(target)).ok()?;
        until(tap, guest, |heard| match heard {
            Heard::Neighbour(address, mac) if address == target => Some(mac),
            _ => None,
        })
    });
    let mac = mac.with_context(|| format!("{target}: no answer to the question where it is"))?;
    let mut times = Vec::new();
    for number in 0..count {
        let sent = Instant::now();
        tap.send(&guest.ping(mac, target, number, bytes))?;
        if until(tap, guest, |heard| (heard == Heard::Echo(target, number)).then_some(())).is_some() {
            times.push(sent.elapsed());
        }
    }
    times.sort_unstable();
    let lost = usize::from(count) - times.len();
    let median =
        times.get(times.len() / 2).map_or_else(|| "-".to_owned(), |time| format!("{} us", time.as_micros()));
    let percent = lost * 100 / usize::from(count.max(1));
    say(&format!(
        "{target}: {count} sent, {} received, {percent}% packet loss, median {median}",
        times.len()
    ));
    if lost > 0 {
        bail!("{target}: {lost} of {count} echoes lost");
    }
    Ok(())
}

/// Pings one target after the other, each under a line with its label, and succeeds whether or not they answer.
fn ask(tap: &Tap, guest: &Guest, count: &str, questions: &[&str]) -> Result<()> {
    let count = count.parse().context("COUNT")?;
    for question in questions {
        let (label, target) = question.rsplit_once('=').context("LABEL=TARGET")?;
        let (target, bytes) = target.split_once(',').unwrap_or((target, "0"));
        let (target, bytes) = (target.parse().context("TARGET")?, bytes.parse().context("BYTES")?);
        say(&format!("@ {label}"));
        match ping(tap, guest, target, count, bytes) {
            Ok(()) => say("@ ok"),
            Err(error) => say(&format!("tapguest: {error:#}")),
        }
    }
    Ok(())
}

/// What `wanted` finds in the frames of the next second; questions to us are answered meanwhile.
fn until<T>(tap: &Tap, guest: &Guest, wanted: impl Fn(Heard) -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    while let Ok(Some(frame)) = tap.receive(Some(deadline)) {
        if let Some(answer) = guest.answer(&frame) {
            tap.send(&answer).ok()?;
        }
        if let Some(found) = guest.hear(&frame).and_then(&wanted) {
            return Some(found);
        }
    }
    None
}

fn listen(device: &str, seconds: &str) -> Result<()> {
    let tap = Tap::open(device)?;
    let deadline = Instant::now() + Duration::from_secs(seconds.parse().context("SECONDS")?);
    say("listening");
    while let Some(frame) = tap.receive(Some(deadline))? {
        say(&packet::describe(&frame));
    }
    Ok(())
}

fn say(line: &str) {
    use std::io::Write as _;
    // Nobody is left to read: the end of the guest.
    let _ = writeln!(std::io::stdout(), "{line}");
}
