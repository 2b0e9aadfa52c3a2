//! The root file system of KubeVirt's images: libvirt and QEMU of Debian 13, unpacked, not installed.
//!
//! Not of the distribution that this machine runs: with libvirt 9 and QEMU 7.2 of Debian 12 machines ran, but did not
//! migrate.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::layout::{self, Checkout};
use crate::{components, progress, trixie};

/// What is asked for; what these depend on comes with them.
const PACKAGES: [&str; 15] = [
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-log",
    "libvirt-clients",
    "qemu-system-x86",
    "qemu-utils",
    "bash",
    "dash",
    "coreutils",
    "grep",
    "sed",
    "findutils",
    "procps",
    "util-linux",
    "base-files",
];

/// Packages that others depend on and nothing here runs, by the beginnings of their names.
const LEFT_OUT: [&str; 14] = [
    "systemd",
    "libsystemd-shared",
    "passwd",
    "cron",
    "libpam",
    "logrotate",
    "adduser",
    "libdb5",
    "debconf",
    "libnss3",
    "dbus",
    "nftables",
    "libnftables",
    "init-system-helpers",
];

/// Users by number. libvirt fails without its own, whatever its configuration says; 107 is KubeVirt's for machines, 1001
/// that of its control plane.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nqemu:x:107:107:user:/home/qemu:/bin/bash\n\
                      libvirt-qemu:x:64055:107::/var/lib/libvirt:/bin/false\nkubevirt:x:1001:1001::/:/bin/false\n";
const GROUP: &str =
    "root:x:0:\nqemu:x:107:\nlibvirt:x:108:\nkvm:x:109:\nlibvirt-qemu:x:64055:\nkubevirt:x:1001:\n";

/// Debian has libvirt's one daemon, KubeVirt starts the one of QEMU alone: the protocol is the same, the socket's name is
/// not. The link is relative because virt-handler reaches it through `/proc/PID/root`.
const VIRTQEMUD: &str = "#!/bin/sh\n\
    run=${XDG_RUNTIME_DIR:-/run}/libvirt\n\
    mkdir -p \"$run\"\n\
    ln -sfn libvirt-sock \"$run/virtqemud-sock\"\n\
    exec /usr/libexec/virtqemud \"$@\"\n";

/// What KubeVirt's node labeller reads, asked of the emulator: machines of these tests are emulated, whatever
/// `/dev/kvm` there is. With KVM's answers a machine could only migrate to nodes that have the features of this one.
const NODE_LABELLER: &str = "#!/bin/bash\nset -ex\nout=/var/lib/kubevirt-node-labeller\n\
    what='--machine q35 --arch x86_64 --virttype qemu'\nvirtqemud -d\n\
    virsh domcapabilities $what > $out/virsh_domcapabilities.xml\n\
    virsh hypervisor-cpu-baseline --features $out/virsh_domcapabilities.xml $what > $out/supported_features.xml\n\
    virsh capabilities > $out/capabilities.xml\n";

/// Makes the file system unless it is there, and gives its directory.
pub(super) fn ensure(checkout: &Checkout) -> Result<PathBuf> {
    let dir = checkout.artefacts().join("kubevirt/base");
    let root = dir.join("root");
    let stamp = dir.join("made");
    let wanted = layout::sha256_hex(
        [trixie::SUITE, &PACKAGES.concat(), &LEFT_OUT.concat(), PASSWD, GROUP, VIRTQEMUD, NODE_LABELLER]
            .concat()
            .as_bytes(),
    );
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(root);
    }
    progress::timed("libvirt and QEMU of Debian 13", Duration::from_secs(15), || {
        layout::remove(&root)?;
        trixie::unpack(&dir, &PACKAGES, &LEFT_OUT, &root)?;
        adapt(checkout, &root)
    })?;
    layout::write(&stamp, wanted)?;
    Ok(root)
}

/// What KubeVirt expects of the distribution that its own images are made from.
fn adapt(checkout: &Checkout, root: &Path) -> Result<()> {
    for part in ["usr/share/doc", "usr/share/locale", "usr/share/man", "var/run"] {
        layout::remove(&root.join(part))?;
    }
    // Debian's is absolute.
    symlink("../run", root.join("var/run")).context("link /var/run")?;
    let sources = components::kubevirt_sources(checkout)?.join("cmd/virt-launcher");
    layout::remove(&root.join("etc/libvirt/libvirtd.conf"))?;
    for (from, to) in [
        ("qemu.conf", "etc/libvirt/qemu.conf"),
        ("virtqemud.conf", "etc/libvirt/virtqemud.conf"),
        ("nsswitch.conf", "etc/nsswitch.conf"),
    ] {
        let text = fs::read(sources.join(from)).with_context(|| format!("read KubeVirt's {from}"))?;
        layout::write(&root.join(to), text)?;
    }
    program(root, "etc/libvirt/hooks/qemu", fs::read(sources.join("qemu")).context("read KubeVirt's hook")?)?;
    layout::write(&root.join("etc/passwd"), PASSWD)?;
    layout::write(&root.join("etc/group"), GROUP)?;
    let daemon = fs::read(root.join("usr/sbin/libvirtd")).context("read libvirtd")?;
    program(root, "usr/libexec/virtqemud", daemon)?;
    program(root, "usr/sbin/virtqemud", VIRTQEMUD.into())?;
    program(root, "usr/bin/node-labeller.sh", NODE_LABELLER.into())
}

fn program(root: &Path, place: &str, content: Vec<u8>) -> Result<()> {
    let path = root.join(place);
    layout::write(&path, content)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} a program", path.display()))
}
