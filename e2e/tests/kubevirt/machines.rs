//! Machines boot, are reached from everywhere, have what was asked for, and go without a trace.

use crate::machine::Machine;
use crate::stage::{NAMESPACE, PATIENCE, Stage, play};
use anyhow::{Context, Result, ensure};

/// What a guest reported of one of its interfaces when it found it.
pub(crate) fn said_of(stage: &Stage, namespace: &str, machine: &str, interface: usize) -> Result<String> {
    line(stage, namespace, machine, &format!("guest: eth{interface} "))
}

/// Waits for a line of a guest that contains this, and returns the last such one.
fn line(stage: &Stage, namespace: &str, machine: &str, wanted: &str) -> Result<String> {
    let selector = format!("app={machine}");
    e2e::wait::until(&format!("a line of the guest with {wanted:?}"), PATIENCE, || {
        let words = ["-n", namespace, "logs", "-l", &selector, "-c", "guest-console-log", "--tail=-1"];
        let log = stage.kubectl.run(&words)?;
        Ok(log.lines().rfind(|line| line.contains(wanted)).map(|line| line.trim().to_owned()))
    })
}

fn console(stage: &Stage, machine: &Machine, interface: usize) -> Result<String> {
    said_of(stage, NAMESPACE, machine.name, interface)
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

#[test]
fn several_networks_several_queues_stop_and_start() -> Result<()> {
    play(|stage| {
        let machine =
            Machine { networks: vec!["follow", "fixed", "second"], cores: 2, ..Machine::on("wide", 52, "") };
        stage.start(&machine)?;
        for interface in 0..3 {
            let said = console(stage, &machine, interface)?;
            println!("{said}");
            ensure!(said.contains(&machine.mac_of(interface)) && said.contains("queues 2"), "{said}");
        }
        for strategy in ["Halted", "Always"] {
            let patch = format!("{{\"spec\": {{\"runStrategy\": \"{strategy}\"}}}}");
            stage.kubectl.run(&[
                "-n",
                NAMESPACE,
                "patch",
                "vm",
                machine.name,
                "--type",
                "merge",
                "-p",
                &patch,
            ])?;
            if strategy == "Halted" {
                stage.kubectl.wait_for(NAMESPACE, &format!("vmi/{}", machine.name), "delete", PATIENCE)?;
            }
        }
        stage.wait_running(&machine)?;
        stage.wait_reached(&machine)
    })
}

#[test]
fn a_machine_without_an_address_of_its_own_has_its_pods() -> Result<()> {
    play(|stage| {
        let machine = Machine { mac: false, ..Machine::on("nameless", 53, "follow") };
        stage.start(&machine)?;
        let (node, _) = stage.launchers(&machine)?.pop().context("no pod")?;
        let said = console(stage, &machine, 0)?;
        println!("{said}");
        ensure!(stage.node(&node)?.exec(&["sh", "-c", "ls /run/macvtap/follow | wc -l"])?.trim() == "0");
        Ok(())
    })
}

/// What KubeVirt's own test of this binding asks for, and a second network in both.
#[test]
fn two_machines_reach_each_other_on_both_of_their_networks() -> Result<()> {
    play(|stage| {
        let on_both =
            |name, number| Machine { networks: vec!["follow", "second"], ..Machine::on(name, number, "") };
        let asked = on_both("asked", 54);
        stage.start(&asked)?;
        let addresses = [asked.addresses_on(0), asked.addresses_on(1)].concat();
        let asking = Machine { asks: addresses.clone(), ..on_both("asking", 55) };
        stage.start(&asking)?;
        for address in addresses {
            println!("{}", line(stage, NAMESPACE, asking.name, &format!("guest: reached {address}"))?);
        }
        Ok(())
    })
}
