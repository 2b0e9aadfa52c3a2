//! Machines boot, are reached from everywhere, have what was asked for, and go without a trace.

use crate::machine::Machine;
use crate::stage::{NAMESPACE, PATIENCE, Stage, play};
use anyhow::{Context, Result, ensure};

/// What a guest said of one of its interfaces when it found it.
fn console(stage: &Stage, machine: &Machine, interface: usize) -> Result<String> {
    let (_, pod) = stage.launchers(machine)?.pop().context("the machine has no pod")?;
    let wanted = format!("guest: eth{interface} ");
    e2e::wait::until(&format!("the guest's words about eth{interface}"), PATIENCE, || {
        let log = stage.kubectl.run(&["-n", NAMESPACE, "logs", &pod, "-c", "guest-console-log"])?;
        Ok(log.lines().find(|line| line.contains(&wanted)).map(|line| line.trim().to_owned()))
    })
}

#[test]
fn a_machine_boots_is_reached_by_both_families_and_has_what_was_asked_for() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("plain", 51, "follow");
        stage.start(&machine)?;
        let said = console(stage, &machine, 0)?;
        println!("{said}");
        ensure!(said.contains(&format!("{} mtu 9000 queues 1", machine.mac_of(0))), "{said}");
        let (node, pod) = stage.launchers(&machine)?.pop().context("no pod")?;
        let taps = stage.kubectl.exec(NAMESPACE, &pod, &["sh", "-c", "stat -c '%a %u:%g %n' /dev/tap*"])?;
        println!("{node}: {}", taps.trim());
        ensure!(taps.starts_with("600 107:107 /dev/tap") && taps.lines().count() == 1, "{taps}");
        Ok(())
    })
}
