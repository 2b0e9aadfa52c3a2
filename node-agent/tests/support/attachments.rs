//! What the plugin leaves of a pod: its link and its attachment record.

use super::Node;
use macvtap::device_id::DeviceId;
use macvtap::paths::Paths;
use macvtap::record::{Attachment, DeviceNumber, Holder, Nic, State, VERSION};
use macvtap::records;
use macvtap::table::{IFINDEX_FIRST, WholeNic};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The record of a device that the pod `default/<pod>` had, and whose sandbox and link are nowhere. No tap of this
/// machine has its number.
pub(crate) fn lost(device: &str, pod: &str) -> Attachment {
    let device: DeviceId = device.parse().unwrap();
    let slot = device.slot();
    Attachment {
        version: VERSION,
        device,
        holder: Holder::Pod {
            container_id: format!("sandbox-of-{pod}"),
            ifname: "net1".into(),
            pod_uid: format!("11111111-2222-3333-4444-{slot:012}"),
            pod_namespace: "default".into(),
            pod_name: pod.to_owned(),
            netns: "/run/netns/none".into(),
            netns_inode: 1,
        },
        state: State::Attached,
        ifindex: IFINDEX_FIRST + slot,
        lower_ifindex: 2,
        mac: None,
        tap: Some(DeviceNumber { major: 4095, minor: slot }),
        netns_id: None,
        network: None,
        nic: None,
        made: None,
        kubelet: None,
    }
}

/// A NIC of the table, as a record describes it.
pub(crate) fn nic(known: &WholeNic) -> Nic {
    Nic {
        pci: known.address,
        identity: known.identity.clone(),
        name: known.name.clone(),
        mac: None,
        mtu: 1500,
        up: false,
        promiscuous: false,
        all_multicast: false,
        alias: None,
        alt_names: Vec::new(),
        tuning: macvtap::record::Tuning::default(),
        programs: None,
    }
}

impl Node {
    /// Where the product has its files on this node.
    pub(crate) fn paths(&self) -> Paths {
        Paths::new(self.path("/var/lib/macvtap"), self.path("/run/macvtap"))
    }

    /// Notes that a pod has a device.
    pub(crate) fn record(&self, record: &Attachment) {
        records::write(&self.paths(), record).unwrap();
    }

    /// A pod's namespace with the link that ADD makes on `dp0`.
    pub(crate) fn make_link_of_pod(&self, netns: &str, ifindex: u32) {
        self.sh(&format!(
            "ip netns add {netns} && \
             ip link add link dp0 name net1 index {ifindex} netns {netns} type macvtap mode bridge"
        ));
    }

    /// What ADD makes of a device for the pod `default/<pod>`: namespace, link and record, all but the tap's number.
    pub(crate) fn attach(&self, device: &str, pod: &str, state: State) {
        let mut record = Attachment { state, tap: None, ..lost(device, pod) };
        self.make_link_of_pod(pod, record.ifindex);
        record.lower_ifindex = self.sh("cat /sys/class/net/dp0/ifindex").trim().parse().unwrap();
        let path = format!("/run/netns/{pod}");
        if let Holder::Pod { netns, netns_inode, .. } = &mut record.holder {
            *netns_inode = fs::metadata(self.path(&path)).unwrap().ino();
            *netns = path;
        }
        self.record(&record);
    }

    /// Lets the record of a device say that its pod's namespace is at another path, as the kernel numbers it.
    pub(crate) fn move_record(&self, device: &str, pod: &str, path: &str) {
        // `ip` gives it a number.
        self.sh(&format!("ip netns set {pod} auto"));
        let list = self.sh("ip netns list");
        let id = list.lines().find_map(|line| line.strip_prefix(&format!("{pod} (id: "))?.strip_suffix(')'));
        let mut record = records::read(&self.paths(), &device.parse().unwrap()).unwrap().unwrap();
        record.netns_id = Some(id.unwrap().parse().unwrap());
        if let Holder::Pod { netns, .. } = &mut record.holder {
            path.clone_into(netns);
        }
        self.record(&record);
    }
}
