//! What the machines boot: Debian's cloud kernel, and a file system with busybox that gives each NIC its addresses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::guest_lab::image;
use crate::guest_lab::kernel::{self, Flavour};
use crate::layout::{self, Checkout};

/// The first process of a machine.
const INIT: &str = include_str!("../../kubevirt/guest-init.sh");

/// Kernel and first file system.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

/// Makes both.
pub(super) fn ensure(checkout: &Checkout) -> Result<Guest> {
    let dir = checkout.artefacts().join("kubevirt/guest");
    let found = kernel::unpack(checkout, Flavour::Cloud)?;
    let modules: Vec<PathBuf> = found.modules.into_iter().filter(|module| is_needed(module)).collect();
    let init = dir.join("init");
    layout::write(&init, INIT)?;
    let archive = dir.join("initrd.cpio");
    let mut files =
        vec![(checkout.debian().join("bin/busybox"), "/bin/busybox".to_owned()), (init, "/init".to_owned())];
    for (number, module) in modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        files.push((module.clone(), format!("/modules/{number:02}-{name}")));
    }
    image::pack(&archive, &files)?;
    let guest = Guest { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd.img") };
    padded(&found.image, &guest.kernel)?;
    padded(&archive, &guest.initrd)?;
    Ok(guest)
}

/// Without the modules that make links of a node: a guest has NICs alone.
fn is_needed(module: &Path) -> bool {
    let name = module.file_name().unwrap_or_default().to_string_lossy();
    ["virtio", "net_failover", "failover"].iter().any(|prefix| name.starts_with(prefix))
}

/// Copies a file and adds zeros until its CRC-32 is below 2^31: KubeVirt 1.7 writes the sum into a field that its own
/// schema calls a signed number of 32 bits, and an API server of 1.36 refuses what is larger.
fn padded(from: &Path, to: &Path) -> Result<()> {
    let mut content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    while crc32(&content) >= 1 << 31 {
        content.extend([0; 4]);
    }
    layout::write(to, content)
}

fn crc32(content: &[u8]) -> u32 {
    !content.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_one_of_zip_and_kubevirt() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
