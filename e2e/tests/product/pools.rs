//! A pool's life: from `kubectl apply` to pods that talk over macvtap, and back to nothing.

use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, allocatable, play};
use anyhow::{Context, Result, ensure};
use std::time::Instant;

#[test]
fn a_pool_gives_pods_on_every_node_a_macvtap_and_leaves_nothing() -> Result<()> {
    play("pool-life", |stage| {
        let foreign = "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n\
                       metadata: {name: foreign, namespace: pool-life}\nspec: {config: '{\"type\": \"bridge\"}'}\n";
        stage.kubectl.apply(foreign)?;
        let applied = Instant::now();
        stage.pool(
            "life",
            "  links: [{names: [dp0]}]\n  capacity: {perLink: 20}\n  macvtap: {mode: Bridge, mtu: 1400}\n  \
             networks: [{name: life, namespaces: {names: [pool-life]}}]\n",
        )?;
        let resource = format!("{PREFIX}/life");
        stage.wait_allocatable(&resource, 20)?;
        println!("pool applied to allocatable on every node: {:.1} s", applied.elapsed().as_secs_f64());
        stage.pool_condition("life", "Ready", "True", "AllNodesReady")?;

        let mut pods = Vec::new();
        for (number, (name, node, guest)) in [
            ("answers-1", "n1", Guest::Answers),
            ("answers-2", "n2", Guest::Answers),
            ("asks-1", "n1", Guest::Asks),
            ("asks-2", "n2", Guest::Asks),
        ]
        .into_iter()
        .enumerate()
        {
            let number = u8::try_from(number)? + 1;
            pods.push(Pod::apply(stage, name, node, guest, &resource, Some("life"), number)?);
        }
        for pod in &pods {
            pod.ready(stage)?;
            has_its_own_tap(stage, pod)?;
        }
        for asks in &pods[2..] {
            for answers in &pods[..2] {
                asks.pings(stage, "net1", answers)?;
            }
        }

        for pod in &pods {
            pod.delete(stage)?;
        }
        stage.nothing_left("life")?;
        stage.kubectl.run(&["delete", "macvtapresourcepool", "life", "--wait", "--timeout=60s"])?;
        for node in stage.nodes {
            stage.kubectl.wait_until("", &format!("node/{}", node.name()), PATIENCE, |object| {
                allocatable(object, &resource).is_none_or(|count| count == 0).then_some(())
            })?;
        }
        let networks = stage.kubectl.get("pool-life", "network-attachment-definitions")?;
        let names: Vec<_> =
            networks["items"].as_array().context("no list")?.iter().map(|n| &n["metadata"]["name"]).collect();
        ensure!(names == ["foreign"], "networks left: {names:?}");
        Ok(())
    })
}

/// The link is as the pool says, and the node in the container is that very link's, although other links of the same
/// machine may have the same index.
fn has_its_own_tap(stage: &Stage, pod: &Pod) -> Result<()> {
    let attachment = pod.attachment(stage)?;
    println!("{} on {}: {attachment:?}", pod.name, pod.node);
    ensure!(attachment.kind == "macvtap" && attachment.mode == "bridge", "{attachment:?}");
    ensure!(attachment.mtu == 1400 && attachment.up, "{attachment:?}");
    ensure!(attachment.node == format!("107:107 {}", attachment.link_device), "{attachment:?}");
    Ok(())
}

#[test]
fn a_pod_that_asks_only_for_the_resource_gets_a_usable_tap() -> Result<()> {
    play("tap-only", |stage| {
        stage.pool("taponly", "  links: [{names: [dp1]}]\n  capacity: {perLink: 5}\n  tapOnly: Allowed\n")?;
        let resource = format!("{PREFIX}/taponly");
        stage.wait_allocatable(&resource, 5)?;
        let answers = Pod::apply(stage, "answers", "n1", Guest::Answers, &resource, None, 1)?;
        let asks = [("asks-1", "n1", 2), ("asks-2", "n2", 3)];
        let asks: Result<Vec<_>> = asks
            .map(|(name, node, number)| Pod::apply(stage, name, node, Guest::Asks, &resource, None, number))
            .into_iter()
            .collect();
        answers.ready(stage)?;
        for pod in asks? {
            pod.ready(stage)?;
            pod.pings(stage, "auto", &answers)?;
        }
        Ok(())
    })
}

#[test]
fn a_pool_forbids_a_tap_without_network_unless_it_says_otherwise() -> Result<()> {
    play("no-tap-only", |stage| {
        stage.pool("notaponly", "  links: [{names: [dp1]}]\n  capacity: {perLink: 5}\n")?;
        let resource = format!("{PREFIX}/notaponly");
        stage.wait_allocatable(&resource, 5)?;
        Pod::apply(stage, "greedy", "n1", Guest::Asks, &resource, None, 1)?;
        // There is no node to hand out, because nobody made a link.
        stage.event("greedy", "/run/macvtap/dev/")?;
        stage.nothing_left("notaponly")
    })
}

/// Multus' rule, not ours; docs/cni.md promises it.
#[test]
fn of_two_networks_the_first_goes_to_the_first_container() -> Result<()> {
    play("two-containers", |stage| {
        stage.pool(
            "pairs",
            "  links: [{names: [dp0]}]\n  capacity: {perLink: 5}\n  networks: [{name: pairs, namespaces: {names: [two-containers]}}]\n",
        )?;
        let resource = format!("{PREFIX}/pairs");
        stage.wait_allocatable(&resource, 5)?;
        // By their names the containers stand in another order than in the spec.
        let container = |name| {
            format!(
                "  - {{name: {name}, image: localhost/tapguest:dev, imagePullPolicy: Never, command: [sleep, '100000'], \
                 resources: {{limits: {{{resource}: 1}}}}}}\n"
            )
        };
        stage.kubectl.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pair\n  namespace: two-containers\n  \
             annotations: {{k8s.v1.cni.cncf.io/networks: 'pairs,pairs'}}\nspec:\n  nodeName: n1\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n{}{}",
            container("z-first"),
            container("a-second"),
        ))?;
        stage.kubectl.wait_for("two-containers", "pod/pair", "condition=Ready", PATIENCE)?;
        for (container, interface) in [("z-first", "net1"), ("a-second", "net2")] {
            let script = format!("echo /dev/tap$(cat /sys/class/net/{interface}/ifindex) = /dev/tap*");
            let words = ["-n", "two-containers", "exec", "pair", "-c", container, "--", "sh", "-c", &script];
            let said = stage.kubectl.run(&words)?;
            let (wanted, there) = said.trim().split_once(" = ").context("no answer")?;
            ensure!(wanted == there, "{container} has {there}, {interface} is {wanted}");
        }
        Ok(())
    })
}
