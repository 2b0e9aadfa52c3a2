//! The played kubelet, its pods and their sandboxes.

use crate::devices::offer::{Granted, Offer};
use crate::kubelet::KUBELET_SOCKET;
use crate::kubelet::answer::answer;
use crate::pods::{Listing, PodName};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::paths::Paths;
use prost::Message as _;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// The moment at which something happens.
#[derive(Clone, Copy)]
pub(super) struct Clock<'c> {
    pub(super) now: Instant,
    /// The same, since the simulation began.
    pub(super) since: Duration,
    pub(super) plugins: &'c Path,
}

#[derive(Debug)]
pub(super) struct SimulatedKubelet {
    pub(super) starts: u64,
    /// Until then it has not heard from the API server.
    pub(super) deaf_until: Duration,
    /// Whether it lists the agent's pod all the same, a static one.
    pub(super) lists_static: bool,
    /// Whether its socket of pod resources answers.
    pub(super) answers: bool,
    pub(super) offered: BTreeMap<ResourceName, Offer>,
    /// Devices that it gave away, with the UID of the pod and what was granted.
    pub(super) given: BTreeMap<DeviceId, (u64, Granted)>,
    pub(super) pods: BTreeMap<u64, Tenant>,
}

/// A pod with a macvtap.
#[derive(Clone, Debug)]
pub(super) struct Tenant {
    pub(super) name: String,
    pub(super) device: DeviceId,
    /// The index that Allocate promised: the container's tap is called after it.
    pub(super) promised: u32,
    pub(super) sandbox: Option<Sandbox>,
    /// The tap number that its container can open.
    pub(super) opened: Option<u32>,
    /// The kubelet is done with it; its sandbox may still be there.
    pub(super) ended: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pub(super) netns: i32,
    pub(super) container: String,
    /// ADD has succeeded, and no DEL since.
    pub(super) attached: bool,
}

/// The node's name.
pub(super) const NAME: &str = "node-1";

/// The agent's own pod.
pub(super) fn agent() -> PodName {
    PodName { namespace: "kube-system".into(), name: "agent".into() }
}

impl SimulatedKubelet {
    pub(super) fn new() -> Self {
        Self {
            starts: 0,
            deaf_until: Duration::ZERO,
            lists_static: false,
            answers: true,
            offered: BTreeMap::new(),
            given: BTreeMap::new(),
            pods: BTreeMap::new(),
        }
    }

    /// Starts, again or for the first time: makes its socket.
    pub(super) fn start(&mut self, plugins: &Path) {
        self.starts += 1;
        let (socket, new) = (plugins.join(KUBELET_SOCKET), plugins.join("new"));
        std::fs::write(&new, "").unwrap();
        std::fs::rename(new, socket).unwrap();
    }

    /// What it says through pod resources.
    pub(super) fn listing(&self, since: Duration) -> Option<Listing> {
        if !self.answers {
            return None;
        }
        if since < self.deaf_until {
            let pods = if self.lists_static { vec![agent()] } else { Vec::new() };
            return Some(Listing { devices: BTreeMap::new(), pods });
        }
        let live = |uid: &u64| self.pods.get(uid).filter(|pod| !pod.ended);
        let devices = self.given.iter();
        let devices = devices.filter_map(|(device, (uid, _))| Some((device.clone(), live(uid)?.pod())));
        let pods = self.pods.values().filter(|pod| !pod.ended).map(Tenant::pod);
        Some(Listing { devices: devices.collect(), pods: pods.chain([agent()]).collect() })
    }

    /// A device that it can give away, with the promised index.
    pub(super) fn allocate(&self, resource: &ResourceName) -> Option<Granted> {
        let offer = self.offered.get(resource)?;
        let healthy = offer.devices().into_iter().filter(|device| device.health == "Healthy");
        let taken = |id: &str| id.parse::<DeviceId>().is_ok_and(|device| self.given.contains_key(&device));
        let free: Vec<String> = healthy.map(|device| device.id).filter(|id| !taken(id)).collect();
        let chosen = offer.prefer(&free, &[], 1);
        offer.grant(&chosen).ok()?.into_iter().next()
    }

    /// Writes its checkpoint.
    pub(super) fn note(&self, plugins: &Path) {
        let entries = self.given.iter().map(|(device, (uid, granted))| {
            let answer = answer(&Paths::default(), device.resource(), std::slice::from_ref(granted));
            json!({
                "PodUID": uid.to_string(), "ContainerName": "c",
                "ResourceName": format!("macvtap.network.kubevirt.io/{}", device.resource()),
                "DeviceIDs": {"-1": [device.to_string()]},
                "AllocResp": BASE64.encode(answer.encode_to_vec()),
            })
        });
        let entries: Vec<_> = entries.collect();
        let note = json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1});
        std::fs::write(plugins.join("kubelet_internal_checkpoint"), note.to_string()).unwrap();
    }
}

impl Tenant {
    pub(super) fn pod(&self) -> PodName {
        PodName { namespace: "default".into(), name: self.name.clone() }
    }

    pub(super) fn is_up(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.attached)
    }
}
