//! Mistakes that users make, and where they are told.

use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, play};
use anyhow::{Result, ensure};

#[test]
fn of_two_pools_with_one_resource_name_the_younger_is_told() -> Result<()> {
    play("twins", |stage| {
        stage.pool("twin-a", "  resourceName: twin\n  links: [{names: [dp0]}]\n")?;
        stage.pool_condition("twin-a", "Ready", "True", "AllNodesReady")?;
        stage.pool("twin-b", "  resourceName: twin\n  links: [{names: [dp1]}]\n")?;
        let message = stage.pool_condition("twin-b", "Accepted", "False", "ResourceNameConflict")?;
        ensure!(message.contains("twin-a"), "{message}");
        stage.pool_condition("twin-a", "Ready", "True", "AllNodesReady")?;
        Ok(())
    })
}

#[test]
fn a_pool_without_links_tells_for_each_node_why() -> Result<()> {
    play("nolinks", |stage| {
        stage.pool("nolinks", "  links: [{names: [ens99]}]\n")?;
        let nodes = stage.nodes.len();
        let samples = stage.kubectl.wait_until("", "macvtapresourcepool/nolinks", PATIENCE, |pool| {
            let samples = pool["status"]["samples"].as_array()?;
            let told = samples.iter().filter(|sample| sample["reason"] == "NoMatchingLink").count();
            (told == nodes).then(|| samples.clone())
        })?;
        println!("{samples:?}");
        stage.pool_condition("nolinks", "Ready", "False", "NoMatchingLinks")?;
        Ok(())
    })
}

#[test]
fn a_network_that_cannot_work_says_so_in_the_pods_events() -> Result<()> {
    play("badnets", |stage| {
        stage.pool(
            "badnets",
            "  links: [{names: [dp0]}]\n  capacity: {perLink: 5}\n  networks: [{name: good, namespaces: {names: [badnets]}}]\n",
        )?;
        let resource = format!("{PREFIX}/badnets");
        stage.wait_allocatable(&resource, 5)?;
        let holder = Pod::apply(stage, "holder", "n1", Guest::Asks, &resource, Some("good"), 1)?;
        holder.ready(stage)?;
        let held = holder.attachment(stage)?;

        for (name, annotation, extra, expected) in [
            ("noresource", Some("macvtap.network.kubevirt.io/absent"), "", "deviceID"),
            ("nodevice", None, "", "deviceID"),
            ("foreign", None, r#", "deviceID": "badnetsMvp4000""#, "badnetsMvp4000"),
            ("shell", None, r#", "deviceID": "$(touch /tmp/x);Mvp0""#, "$(touch /tmp/x);"),
            ("nomtu", Some(resource.as_str()), r#", "mtu": 60000"#, "mtu"),
        ] {
            stage.network(name, annotation, extra)?;
            Pod::apply(stage, name, "n1", Guest::Asks, &resource, Some(name), 9)?;
            let message = stage.event(name, expected)?;
            println!("{name}: {message}");
            stage.kubectl.run(&["-n", "badnets", "delete", "pod", name, "--wait", "--timeout=60s"])?;
        }
        ensure!(holder.attachment(stage)? == held, "a neighbour's mistake touched a running pod");
        Ok(())
    })
}

#[test]
fn a_device_id_written_by_hand_reaches_no_other_pods_tap() -> Result<()> {
    play("thief", |stage| {
        stage.pool(
            "thief",
            "  links: [{names: [dp0]}]\n  capacity: {perLink: 1}\n  networks: [{name: good, namespaces: {names: [thief]}}]\n",
        )?;
        let resource = format!("{PREFIX}/thief");
        stage.wait_allocatable(&resource, 1)?;
        let owner = Pod::apply(stage, "owner", "n1", Guest::Answers, &resource, Some("good"), 1)?;
        owner.ready(stage)?;
        let held = owner.attachment(stage)?;
        stage.network("steal", None, r#", "deviceID": "thiefMvp0""#)?;
        Pod::apply(stage, "thief", "n1", Guest::Asks, "cpu", Some("steal"), 2)?;
        let message = stage.event("thief", "in use by pod thief/owner")?;
        println!("{message}");
        ensure!(owner.attachment(stage)? == held, "the owner's link was touched");
        stage.kubectl.wait_until("thief", "pod/thief", PATIENCE, |pod| {
            (pod["status"]["phase"] == "Pending").then_some(())
        })
    })
}
