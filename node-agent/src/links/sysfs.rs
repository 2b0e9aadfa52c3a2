//! What sysfs reports of the device behind a link and rtnetlink does not.
//!
//! sysfs goes by name, and names change hands, so what was read counts only when the index still fits afterwards.

use crate::links::link::Hardware;
use macvtap::pci::PciAddress;
use std::fs;
use std::path::{Path, PathBuf};

/// The links of the namespace that `/sys` was mounted for.
pub const LINKS: &str = "/sys/class/net";

/// The PCI functions of the machine, whatever namespace their links are in.
pub const FUNCTIONS: &str = "/sys/bus/pci/devices";

/// Longer than any chain of bridges.
const DEPTH_MAX: usize = 32;

/// Returns the device behind a link without its speed, or none if the link has no device or the name now belongs to
/// another link.
pub fn hardware(links: &Path, name: &str, ifindex: u32) -> Option<Hardware> {
    if !is_file_name(name) {
        return None;
    }
    let link = links.join(name);
    let device = fs::canonicalize(link.join("device")).ok()?;
    let function = pci_function(&device);
    let hardware = Hardware {
        parent: file_name(&device),
        driver: driver(&device),
        pci_address: function.as_deref().and_then(file_name),
        vendor: function.as_deref().and_then(vendor),
        numa_node: function.as_deref().and_then(numa_node),
        is_virtual_function: function.as_deref().is_some_and(is_virtual_function),
        speed_mbps: None,
    };
    has_index(&link, ifindex).then_some(hardware)
}

/// Returns the speed of a link in Mbit/s (a bond's is the sum of its members'), or none while the kernel does not know
/// it, for example without carrier. Waits for the kernel's rtnetlink lock, so it must not be called where others wait.
pub fn speed(links: &Path, name: &str, ifindex: u32) -> Option<u32> {
    if !is_file_name(name) {
        return None;
    }
    let link = links.join(name);
    number(&link.join("speed")).filter(|speed| *speed > 0 && has_index(&link, ifindex))
}

/// The device of a NIC whose link is in another namespace: a PCI function, or what virtio has made of it.
pub fn function(functions: &Path, address: PciAddress) -> Hardware {
    let directory = functions.join(address.to_string());
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let virtio = names.filter(|name| name.starts_with("virtio")).min();
    let device = virtio.as_ref().map_or_else(|| directory.clone(), |name| directory.join(name));
    Hardware {
        parent: Some(virtio.unwrap_or_else(|| address.to_string())),
        driver: driver(&device),
        pci_address: Some(address.to_string()),
        vendor: vendor(&directory),
        numa_node: numa_node(&directory),
        is_virtual_function: is_virtual_function(&directory),
        speed_mbps: None,
    }
}

/// Whether the name, which the kernel chose or checked, stays below the directory it is joined to.
fn is_file_name(name: &str) -> bool {
    !name.contains('/') && !matches!(name, "." | "..")
}

/// Whether the directory is still that of the link with this index: names change hands.
fn has_index(link: &Path, ifindex: u32) -> bool {
    number(&link.join("ifindex")) == Some(ifindex)
}

/// The PCI function a device is, or is behind: virtio devices are one level below theirs.
fn pci_function(device: &Path) -> Option<PathBuf> {
    device
        .ancestors()
        .take(DEPTH_MAX)
        .find(|directory| {
            let bus = fs::canonicalize(directory.join("subsystem")).ok();
            bus.is_some_and(|bus| bus.ends_with("bus/pci"))
        })
        .map(Path::to_owned)
}

fn driver(device: &Path) -> Option<String> {
    file_name(&fs::canonicalize(device.join("driver")).ok()?)
}

fn vendor(function: &Path) -> Option<String> {
    text(&function.join("vendor")).map(|vendor| vendor.replacen("0x", "", 1))
}

fn numa_node(function: &Path) -> Option<u32> {
    number(&function.join("numa_node"))
}

/// A virtual function links to the physical one that it is made of.
fn is_virtual_function(function: &Path) -> bool {
    function.join("physfn").exists()
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A number that is not negative: -1 means that the kernel does not know.
fn number(path: &Path) -> Option<u32> {
    text(path)?.parse().ok()
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A virtio NIC behind a bridge, as sysfs lays it out.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let function = root.join("devices/pci0000:00/0000:00:04.0/0000:01:00.0");
        let device = function.join("virtio1");
        let link = device.join("net/eth0");
        for made in [
            &link,
            &root.join("bus/pci/drivers/x"),
            &root.join("bus/virtio/drivers/virtio_net"),
            &root.join("class/net"),
        ] {
            fs::create_dir_all(made).unwrap();
        }
        symlink(root.join("bus/pci"), function.join("subsystem")).unwrap();
        symlink(root.join("bus/virtio"), device.join("subsystem")).unwrap();
        symlink(root.join("bus/virtio/drivers/virtio_net"), device.join("driver")).unwrap();
        symlink(&device, link.join("device")).unwrap();
        symlink(&link, root.join("class/net/eth0")).unwrap();
        for (file, text) in [("vendor", "0x1af4\n"), ("numa_node", "-1\n")] {
            fs::write(function.join(file), text).unwrap();
        }
        for (file, text) in [("ifindex", "4\n"), ("speed", "10000\n")] {
            fs::write(link.join(file), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_nic_on_virtio_has_the_pci_function_above_it() {
        let dir = tree();
        let hardware = hardware(&dir.path().join("class/net"), "eth0", 4).unwrap();
        assert_eq!(hardware.parent.as_deref(), Some("virtio1"));
        assert_eq!(hardware.driver.as_deref(), Some("virtio_net"));
        assert_eq!(hardware.pci_address.as_deref(), Some("0000:01:00.0"));
        assert_eq!(hardware.vendor.as_deref(), Some("1af4"));
        assert_eq!((hardware.numa_node, hardware.is_virtual_function), (None, false));
        assert_eq!(speed(&dir.path().join("class/net"), "eth0", 4), Some(10_000));
    }

    #[test]
    fn the_device_of_a_nic_in_a_pod_is_found_by_its_address() {
        let dir = tree();
        let link = hardware(&dir.path().join("class/net"), "eth0", 4).unwrap();
        let functions = dir.path().join("devices/pci0000:00/0000:00:04.0");
        let found = function(&functions, "0000:01:00.0".parse().unwrap());
        assert_eq!(found, link);
        let gone = function(&functions, "0000:02:00.0".parse().unwrap());
        assert_eq!((gone.parent.as_deref(), gone.driver), (Some("0000:02:00.0"), None));
    }

    #[test]
    fn a_virtual_function_is_known_by_the_physical_one() {
        let dir = tree();
        let function = dir.path().join("devices/pci0000:00/0000:00:04.0/0000:01:00.0");
        symlink("../0000:01:00.1", function.join("physfn")).unwrap();
        fs::create_dir(function.join("../0000:01:00.1")).unwrap();
        assert!(hardware(&dir.path().join("class/net"), "eth0", 4).unwrap().is_virtual_function);
    }

    #[test]
    fn a_name_that_changed_hands_tells_nothing() {
        let dir = tree();
        let links = dir.path().join("class/net");
        assert_eq!(hardware(&links, "eth0", 5), None);
        assert_eq!(hardware(&links, "../net/eth0", 4), None);
        assert_eq!(hardware(&links, "gone", 4), None);
        assert_eq!((speed(&links, "eth0", 5), speed(&links, "../net/eth0", 4)), (None, None));
    }
}
