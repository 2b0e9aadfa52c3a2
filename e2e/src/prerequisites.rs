//! What the machine itself must have, beside Rust and Go.
//!
//! A few small tools are installed as Debian packages when they are missing. containerd, runc and the like are only
//! unpacked below `target/e2e`: installed, they would start a service, and they would replace what another container
//! engine on this machine brought along.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::layout::{self, Checkout};
use crate::process;
use crate::progress::{self, say};

/// Program (or a file by its full path, or a library), Debian package, why.
const INSTALLED: [(&str, &str, &str); 18] = [
    ("ip", "iproute2", "makes the nodes' network namespaces and links"),
    ("iptables", "iptables", "kube-proxy and the portmap plugin write their rules with it"),
    ("nsenter", "util-linux", "starts the nodes' processes in their namespaces"),
    ("mount", "mount", "gives each node its own mounts"),
    ("gcc", "gcc", "compiles the sandbox process, and the crypto library links with it"),
    ("tar", "tar", "unpacks Debian packages"),
    ("/usr/include/seccomp.h", "libseccomp-dev", "runc links with it"),
    ("pkg-config", "pkg-config", "finds that library"),
    ("make", "make", "runs the targets of the Makefile"),
    ("/usr/include/stdlib.h", "libc6-dev", "headers and the static C library"),
    (
        "/usr/lib/cni/host-local",
        "containernetworking-plugins",
        "the pods' default network, and addresses in tests",
    ),
    ("/usr/sbin/dnsmasq", "dnsmasq-base", "gives addresses by DHCP in tests; the package starts no service"),
    ("/usr/bin/strace", "strace", "lets each system call of the plugin fail, in tests"),
    ("ipset", "ipset", "kube-ovn's node daemon keeps its sets of addresses with it"),
    ("libxdp.so.1", "libxdp1", "Open vSwitch links with it"),
    ("libunbound.so.8", "libunbound8", "Open vSwitch and OVN link with it"),
    ("libnuma.so.1", "libnuma1", "Open vSwitch links with it"),
    ("libcap-ng.so.0", "libcap-ng0", "Open vSwitch and OVN link with it"),
];

/// Package, a file in it, why.
const UNPACKED: [(&str, &str, &str); 10] = [
    ("containerd", "usr/bin/containerd", "the container runtime 1.6 of node n2"),
    ("runc", "usr/sbin/runc", "starts the containers of both nodes"),
    ("busybox-static", "bin/busybox", "the shell in test pods"),
    ("docker-registry", "usr/bin/docker-registry", "serves the image that manifests call busybox"),
    ("prometheus", "usr/bin/prometheus", "evaluates the chart's alerts in tests"),
    ("openvswitch-switch", "usr/lib/openvswitch-switch/ovs-vswitchd", "the switch below kube-ovn"),
    ("openvswitch-common", "usr/sbin/ovsdb-server", "the databases below kube-ovn"),
    ("ovn-common", "usr/bin/ovn-nbctl", "libraries and tools of OVN"),
    ("ovn-central", "usr/bin/ovn-northd", "the central part of OVN below kube-ovn"),
    ("ovn-host", "usr/bin/ovn-controller", "the part of OVN on each node"),
];

/// What Debian signs its archive with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What the tests in virtual machines need beside that.
const GUEST_LAB: [(&str, &str, &str); 2] = [
    ("qemu-system-x86_64", "qemu-system-x86", "emulates the machines of the guest stage"),
    ("modprobe", "kmod", "puts the modules of their kernel in order"),
];

/// What building and trying programs for the other processor needs beside that.
const CROSS: [(&str, &str, &str); 3] = [
    ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "compiles and links for arm64"),
    ("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross", "the static C library of arm64"),
    ("qemu-aarch64", "qemu-user", "runs programs of arm64"),
];

/// Installs and unpacks what is missing.
pub fn ensure(checkout: &Checkout) -> Result<()> {
    for (program, remedy) in [("cargo", "https://rustup.rs"), ("go", "https://go.dev/dl, 1.26 or later")] {
        ensure!(in_path(program), "{program} is not installed; get it from {remedy}");
    }
    let _lock = checkout.lock("prerequisites")?;
    add_musl(checkout, env::consts::ARCH);
    let missing: Vec<(&str, &str)> = INSTALLED
        .iter()
        .filter(|(program, _, _)| !present(program))
        .map(|(_, package, reason)| (*package, *reason))
        .collect();
    let unpack: Vec<_> =
        UNPACKED.iter().filter(|(_, file, _)| !checkout.debian().join(file).exists()).collect();
    if missing.is_empty() && unpack.is_empty() {
        return Ok(());
    }
    ensure!(
        in_path("apt-get"),
        "missing: {}; this is not Debian: install them yourself",
        missing.iter().map(|(package, _)| *package).collect::<Vec<_>>().join(" ")
    );
    install(&missing)?;
    let packages: Vec<&str> = unpack.iter().map(|(package, _, _)| *package).collect();
    for (package, _, reason) in unpack {
        say(format_args!("  unpacking {package} below target/e2e: {reason}"));
    }
    download(checkout, &packages)
}

/// What the tests write below `target`, with room for images and logs: a disk that gets full midway ends the linker with
/// a bus error, which says nothing.
const ROOM: u64 = 14 << 30;

/// Fails when the disk of `target` has no room for what all tests write there.
pub fn ensure_room(checkout: &Checkout) -> Result<()> {
    let target = checkout.root().join("target");
    let free =
        rustix::fs::statvfs(checkout.root()).context("ask for the free space of the checkout's disk")?;
    let free = free.f_bavail * free.f_frsize;
    let used = if target.exists() { size(&target)? } else { 0 };
    ensure!(
        free + used >= ROOM,
        "the disk of {} has {} GiB free, and what all tests write there takes {} GiB; free some, or remove target/debug",
        target.display(),
        free >> 30,
        ROOM >> 30
    );
    Ok(())
}

fn size(dir: &Path) -> Result<u64> {
    let text = process::output(Command::new("du").args(["-s", "--block-size=1"]).arg(dir))?;
    let size = text.split_whitespace().next().and_then(|word| word.parse().ok());
    size.with_context(|| format!("du -s {} printed no size", dir.display()))
}

/// Adds the C library with which the plugin starts fastest. Without it the plugin is built with the usual one.
fn add_musl(checkout: &Checkout, processor: &str) {
    let target = format!("{processor}-unknown-linux-musl");
    let rustup = |arguments: &[&str]| {
        process::output(
            Command::new("rustup").args(arguments).current_dir(checkout.root()).stdin(Stdio::null()),
        )
    };
    // A compiler of the distribution comes without rustup.
    let Ok(installed) = rustup(&["target", "list", "--installed"]) else { return };
    if !installed.lines().any(|line| line == target) {
        say(format_args!("  adding Rust's target {target}: the plugin starts faster with it"));
        if let Err(error) = rustup(&["target", "add", &target]) {
            say(format_args!("  not added, the plugin is built without it: {error:#}"));
        }
    }
}

/// Installs what tests in virtual machines need; they also need what [`ensure`] gives.
pub fn ensure_guest_lab(checkout: &Checkout) -> Result<()> {
    let _lock = checkout.lock("prerequisites")?;
    let missing = GUEST_LAB.iter().filter(|(program, _, _)| !present(program));
    install(&missing.map(|(_, package, reason)| (*package, *reason)).collect::<Vec<_>>())
}

/// Installs what a release for both processors needs; it also needs what [`ensure`] gives.
pub fn ensure_cross(checkout: &Checkout) -> Result<()> {
    ensure!(
        env::consts::ARCH == "x86_64",
        "a release is built on amd64: arm64 is compiled and emulated there"
    );
    let _lock = checkout.lock("prerequisites")?;
    let missing = CROSS.iter().filter(|(program, _, _)| !present(program));
    install(&missing.map(|(_, package, reason)| (*package, *reason)).collect::<Vec<_>>())?;
    add_musl(checkout, "aarch64");
    let mut rustup = Command::new("rustup");
    rustup
        .args(["target", "add", "aarch64-unknown-linux-gnu"])
        .current_dir(checkout.root())
        .stdin(Stdio::null());
    process::output(&mut rustup).context("add Rust's target for arm64").map(drop)
}

/// The emulator, and what leads it to its files. A `recent` one knows NICs with virtual functions, which Debian 12 has in
/// its backports only: that one is unpacked, not installed.
pub fn emulator(checkout: &Checkout, recent: bool) -> Result<Vec<String>> {
    const PROGRAM: &str = "qemu-system-x86_64";
    let knows = |program: &str| {
        let asked = Command::new(program).args(["-device", "igb,help"]).output();
        // One that does not know the device says nothing, and is content.
        asked.is_ok_and(|said| said.stdout.starts_with(b"igb options"))
    };
    if !recent || knows(PROGRAM) {
        return Ok(vec![PROGRAM.to_owned()]);
    }
    let root = checkout.artefacts().join("guest-lab/emulator");
    let place = |file: &str| root.join(file).display().to_string();
    let program = place("usr/bin/qemu-system-x86_64");
    let _lock = checkout.lock("guest-emulator")?;
    if !knows(&program) {
        say("  unpacking QEMU of Debian's backports below target/e2e: it has NICs with virtual functions");
        let packages = ["qemu-system-x86", "qemu-system-data", "seabios"];
        unpack_from(&root, &packages, &backports(checkout)?)?;
    }
    ensure!(knows(&program), "{program} has no NIC with virtual functions, or lacks libraries");
    let [data, firmware] = ["usr/share/qemu", "usr/share/seabios"].map(place);
    Ok(vec![program, "-L".to_owned(), data, "-L".to_owned(), firmware])
}

/// Options of apt for Debian's backports alone, with lists of their own.
fn backports(checkout: &Checkout) -> Result<Vec<String>> {
    let dir = checkout.artefacts().join("guest-lab/backports");
    let lists = dir.join("lists");
    fs::create_dir_all(lists.join("partial")).with_context(|| format!("create {}", lists.display()))?;
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.context("/etc/os-release names no release: this is not Debian")?;
    // They are where this machine gets its release from.
    let known = process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
    ]))?;
    let place = known.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let place = place.with_context(|| format!("apt has no source of {name}"))?;
    let source = dir.join("sources.list");
    layout::write(&source, format!("deb [signed-by={KEYRING}] {place} {name}-backports main\n"))?;
    let option = |key: &str, value: String| ["-o".to_owned(), format!("{key}={value}")];
    let options = [
        option("Dir::Etc::sourcelist", source.display().to_string()),
        option("Dir::Etc::sourceparts", "-".to_owned()),
        option("Dir::State::lists", lists.display().to_string()),
    ];
    Ok(options.concat())
}

/// Fails early, and says what is wrong, when this machine or user cannot run a cluster.
pub fn check_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "a cluster needs root: it makes network namespaces, mounts and cgroups; run this as root"
    );
    Ok(())
}

fn install(missing: &[(&str, &str)]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    check_root().context("install packages")?;
    for (package, reason) in missing {
        say(format_args!("  installing {package}: {reason}"));
    }
    let packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    apt(&[&["install", "-y", "-q", "--no-install-recommends"], &packages[..]].concat())
}

/// Runs apt-get; again with fresh lists when it fails, since a new machine has none.
fn apt(args: &[&str]) -> Result<()> {
    let run = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        process::output(command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()))
    };
    if run(args).is_err() {
        run(&["update", "-q"]).context("update the package lists")?;
        run(args)?;
    }
    Ok(())
}

fn download(checkout: &Checkout, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let root = checkout.debian();
    unpack(&root, packages)?;
    for (package, file, _) in UNPACKED {
        if !root.join(file).exists() {
            bail!("package {package} of this Debian does not contain {file}");
        }
    }
    Ok(())
}

/// Downloads Debian packages and unpacks them below `root`.
pub fn unpack(root: &Path, packages: &[&str]) -> Result<()> {
    unpack_from(root, packages, &[])
}

/// As [`unpack`], with these options of apt.
fn unpack_from(root: &Path, packages: &[&str], options: &[String]) -> Result<()> {
    let archives = root.with_file_name("archives");
    layout::remove(&archives)?;
    fs::create_dir_all(&archives).with_context(|| format!("create {}", archives.display()))?;
    let fetch = || {
        // apt would like to download as its own user, who cannot write here.
        let mut command = Command::new("apt-get");
        command.args(["download", "-q", "-o", "APT::Sandbox::User=root"]).args(options).args(packages);
        process::output(command.current_dir(&archives).stdin(Stdio::null()))
    };
    if fetch().is_err() {
        process::output(Command::new("apt-get").args(["update", "-q"]).args(options))
            .context("update the package lists")?;
        fetch().context("download Debian packages")?;
    }
    for entry in fs::read_dir(&archives)? {
        process::output(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(root))?;
    }
    layout::remove(&archives)
}

/// The first package that this one depends on: what a package without content stands for.
pub fn meaning(package: &str) -> Result<String> {
    let ask = || -> Option<String> {
        let text = process::output(Command::new("apt-cache").args(["depends", package])).ok()?;
        let mut lines = text.lines();
        lines.find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned))
    };
    if let Some(found) = ask() {
        return Ok(found);
    }
    process::output(Command::new("apt-get").args(["update", "-q"])).context("update the package lists")?;
    ask().with_context(|| format!("no package {package} in this Debian"))
}

fn present(program: &str) -> bool {
    if program.starts_with('/') {
        PathBuf::from(program).exists()
    } else if program.contains(".so.") {
        in_libraries(program)
    } else {
        in_path(program)
    }
}

/// Debian keeps libraries below a directory that is named after the processor.
fn in_libraries(library: &str) -> bool {
    ["/lib", "/usr/lib"]
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
        .any(|directory| directory.path().join(library).exists())
}

fn in_path(program: &str) -> bool {
    // A user's PATH often lacks the directories of the system's tools.
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.into_iter().any(|directory| directory.join(program).exists())
}

/// Prints what is there.
pub fn report(checkout: &Checkout) {
    for (program, package, reason) in INSTALLED.iter().chain(&GUEST_LAB) {
        let state = if present(program) { "present" } else { "missing" };
        progress::say(format_args!("  {state}  {package:28} {reason}"));
    }
    for (package, file, reason) in UNPACKED {
        let state = if checkout.debian().join(file).exists() { "present" } else { "missing" };
        progress::say(format_args!("  {state}  {package:28} {reason} (unpacked below target/e2e)"));
    }
}
