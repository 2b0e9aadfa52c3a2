//! The kernels of the machines: Debian's for clouds, and the one with the drivers of real NICs; unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::layout::Checkout;
use crate::{prerequisites, process};

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flavour {
    /// For clouds: small, and without drivers of NICs that clouds do not have.
    Cloud,
    /// For every machine.
    General,
}

impl Flavour {
    /// Names the package that has the kernel.
    fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::General => "linux-image-amd64",
        }
    }

    /// Its directory.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cloud => "kernel",
            Self::General => "kernel-general",
        }
    }

    fn modules(self) -> impl Iterator<Item = &'static str> {
        let drivers = match self {
            Self::Cloud => &[][..],
            Self::General => &DRIVERS,
        };
        MODULES.iter().chain(drivers).copied()
    }
}

/// Drivers of emulated NICs that are real ones elsewhere.
const DRIVERS: [&str; 3] = ["e1000", "igb", "igbvf"];

/// The modules of a machine; what these need comes with them.
const MODULES: [&str; 16] = [
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "bonding",
    "8021q",
    "macvtap",
    "vhost_net",
    "ipvlan",
    "team",
    "team_mode_activebackup",
    "dummy",
    "bridge",
    "veth",
    "vrf",
    "sch_teql",
    "nlmon",
];

/// What a machine boots.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The kernel itself.
    pub(crate) image: PathBuf,
    /// Its modules, in the order to load them in.
    pub(crate) modules: Vec<PathBuf>,
}

/// Unpacks the kernel unless it is there.
pub(crate) fn unpack(checkout: &Checkout, flavour: Flavour) -> Result<Kernel> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the machines of these tests are x86-64 ones, and they run the programs of this build"
    );
    let _lock = checkout.lock("guest-kernel")?;
    let root = checkout.artefacts().join("guest-lab").join(flavour.name());
    if find(&root).is_err() {
        prerequisites::unpack(&root, &[&prerequisites::meaning(flavour.package())?])?;
    }
    let version = find(&root)?;
    if !root.join("lib/modules").join(&version).join("modules.dep.bin").exists() {
        process::output(Command::new("depmod").arg("-b").arg(&root).arg(&version))?;
    }
    let modules = in_order(&root, &version, flavour)?;
    Ok(Kernel { image: root.join("boot").join(format!("vmlinuz-{version}")), modules })
}

/// The version of the kernel below `root`.
fn find(root: &Path) -> Result<String> {
    let boot = root.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("list {}", boot.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let version = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).max();
    version.with_context(|| format!("no kernel in {}", boot.display()))
}

fn in_order(root: &Path, version: &str, flavour: Flavour) -> Result<Vec<PathBuf>> {
    let mut modules: Vec<PathBuf> = Vec::new();
    for module in flavour.modules() {
        let mut command = Command::new("modprobe");
        command.arg("-d").arg(root).args(["-S", version, "--show-depends", module]);
        for line in process::output(&mut command)?.lines() {
            let Some(file) = line.trim().strip_prefix("insmod ") else { continue };
            let file = PathBuf::from(file.split(' ').next().unwrap_or(file));
            if !modules.contains(&file) {
                modules.push(file);
            }
        }
    }
    Ok(modules)
}
