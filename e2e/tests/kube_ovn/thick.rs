//! The life of a pod where Multus is a daemon: the same plugin, called by another program.

use crate::addresses::made_again;
use crate::pods::{Pod, interface, ping};
use crate::stage::play_thick;
use anyhow::{Context, Result, ensure};

#[test]
fn a_multus_daemon_attaches_makes_again_and_removes() -> Result<()> {
    play_thick("thick", |stage| {
        stage.network("net", "172.24.0.0/24,fd00:24::/112")?;
        let pods = [
            Pod::on("pod", "net").says(&stage.key("net", "ip_address"), "172.24.0.50,fd00:24::50"),
            Pod::on("with-mac", r#"[{"name":"net","mac":"02:24:00:00:00:01"}]"#),
            Pod::only_on(stage, "only", "net"),
        ];
        stage.apply(&pods)?;
        stage.ready(&pods)?;
        let node = stage.node("n1")?;
        ensure!(
            node.exec(&["sh", "-c", "cat /etc/cni/net.d/00-multus.conf"])?.contains("multus-shim"),
            "Multus is a daemon here"
        );
        let before = interface(stage, "pod", "net1")?;
        ensure!(before.addresses == ["172.24.0.50/24", "fd00:24::50/112"], "{before:?}");
        ensure!(
            interface(stage, "with-mac", "net1")?.mac == "02:24:00:00:00:01",
            "the MAC address asked for"
        );
        let only = interface(stage, "only", "eth0")?;
        ensure!(only.default_routes == ["eth0 172.24.0.1", "eth0 fd00:24::1"], "{only:?}");
        for address in &only.addresses {
            ping(stage, "pod", address.split('/').next().context("an address")?)?;
        }

        made_again(stage, "pod", "n1")?;
        let after = interface(stage, "pod", "net1")?;
        ensure!(after == before, "before {before:?}, after {after:?}");
        ping(stage, "with-mac", "fd00:24::50")?;

        for pod in &pods {
            stage.delete(&pod.name)?;
        }
        let left = node.exec(&["sh", "-c", "ls /run/macvtap/attachments /run/macvtap/dev"])?;
        ensure!(!left.contains("Mvp") && !left.contains("1677"), "left behind: {left}");
        Ok(())
    })
}
