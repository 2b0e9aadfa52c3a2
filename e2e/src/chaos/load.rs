//! Pods that come and go, of every shape that uses the product: decided by the seed, whatever becomes of the cluster.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::history::History;
use super::kube_ovn;
use super::numbers::Numbers;
use super::snapshot::{NAMESPACE, POOLS, PREFIX};
use crate::{Kubectl, images, process};

/// More pods than these are not kept at a time.
const MOST: usize = 12;

/// What a pod asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A macvtap of the first pool.
    Plain,
    /// The same, with an address of the node's range.
    Addressed,
    /// The same, with an address that kube-ovn assigns.
    KubeOvn,
    /// A macvtap of each pool.
    Two,
    /// Only a tap, of the second pool.
    TapOnly,
}

/// Who keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Deployment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Workload {
    number: u32,
    shape: Shape,
    owner: Owner,
    /// On which node, if it is told.
    node: Option<u8>,
}

impl Workload {
    fn of(number: u32, numbers: &mut Numbers) -> Self {
        let shapes = [
            Shape::Plain,
            Shape::Plain,
            Shape::Addressed,
            Shape::KubeOvn,
            Shape::KubeOvn,
            Shape::Two,
            Shape::TapOnly,
        ];
        let shape = numbers.pick(&shapes).copied().unwrap_or(Shape::Plain);
        let owner = if numbers.chance(50) { Owner::Deployment } else { Owner::Nobody };
        let node = numbers.chance(60).then(|| if numbers.chance(50) { 1 } else { 2 });
        Self { number, shape, owner, node }
    }

    fn name(self) -> String {
        format!("load-{}", self.number)
    }

    fn resource(self) -> String {
        let kind = match self.owner {
            Owner::Nobody => "pod",
            Owner::Deployment => "deployment",
        };
        format!("{kind}/{}", self.name())
    }

    fn manifest(self) -> String {
        let (networks, limits) = match self.shape {
            Shape::Plain => ("chaos-a", format!("{PREFIX}/chaos-a: 1")),
            Shape::Addressed => ("chaos-addressed", format!("{PREFIX}/chaos-a: 1")),
            Shape::KubeOvn => (kube_ovn::NETWORK, format!("{PREFIX}/chaos-a: 1")),
            Shape::Two => ("chaos-a,chaos-b", format!("{PREFIX}/chaos-a: 1, {PREFIX}/chaos-b: 1")),
            Shape::TapOnly => ("", format!("{PREFIX}/chaos-b: 1")),
        };
        let networks = if networks.is_empty() {
            String::new()
        } else {
            format!(r#""k8s.v1.cni.cncf.io/networks": "{networks}""#)
        };
        let node = self.node.map_or_else(String::new, |node| format!("kubernetes.io/hostname: n{node}"));
        let name = self.name();
        let template = format!(
            "metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{load: {name}}}, annotations: {{{networks}}}}}, \
             spec: {{nodeSelector: {{{node}}}, terminationGracePeriodSeconds: 1, automountServiceAccountToken: false, \
             containers: [{{name: c, image: {image}, imagePullPolicy: IfNotPresent, command: [sleep, infinity], \
             resources: {{limits: {{{limits}}}}}}}]}}",
            image = images::reference("busybox"),
        );
        match self.owner {
            Owner::Nobody => format!("{{apiVersion: v1, kind: Pod, {template}}}"),
            Owner::Deployment => format!(
                "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}, namespace: {NAMESPACE}}}, \
                 spec: {{replicas: 1, selector: {{matchLabels: {{load: {name}}}}}, template: {{{template}}}}}}}"
            ),
        }
    }
}

/// How many were made, and how many deleted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) made: u32,
    pub(super) deleted: u32,
}

/// Makes and deletes pods until `stop`. What the API server does not answer is tried again, so that no decision depends on
/// how long it was away.
pub(super) fn run(kubectl: &Kubectl, history: &History, seed: u64, stop: &AtomicBool) -> Counts {
    let mut numbers = Numbers::new(seed, 2);
    let mut kept: Vec<Workload> = Vec::new();
    let mut counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        let make = kept.is_empty() || (kept.len() < MOST && numbers.chance(60));
        if make {
            counts.made += 1;
            let workload = Workload::of(counts.made, &mut numbers);
            retried(history, stop, || apply(kubectl, &workload.manifest()));
            history.note(format_args!("make {workload:?}"));
            kept.push(workload);
        } else if let Some(workload) = numbers.pick(&kept).copied() {
            // One pod of a Deployment is made again under another name, on any node.
            let again = workload.owner == Owner::Deployment && numbers.chance(40);
            let label = format!("load={}", workload.name());
            let resource = workload.resource();
            let what = if again { vec!["pods", "-l", &label] } else { vec![resource.as_str()] };
            retried(history, stop, || delete(kubectl, &what));
            history.note(format_args!("delete {what:?}"));
            if !again {
                kept.retain(|other| other.number != workload.number);
                counts.deleted += 1;
            }
        }
        thread::sleep(Duration::from_millis(numbers.between(100, 2_500)));
    }
    counts
}

fn apply(kubectl: &Kubectl, manifest: &str) -> Result<()> {
    let words = ["--request-timeout=5s", "apply", "--server-side", "--force-conflicts", "-f", "-"];
    process::output_with_input(kubectl.command().args(words), manifest).map(drop)
}

fn delete(kubectl: &Kubectl, what: &[&str]) -> Result<()> {
    let words = ["--request-timeout=5s", "-n", NAMESPACE, "delete", "--wait=false", "--ignore-not-found"];
    process::output(kubectl.command().args(words).args(what)).map(drop)
}

fn retried(history: &History, stop: &AtomicBool, mut what: impl FnMut() -> Result<()>) {
    while let Err(error) = what() {
        if stop.load(Ordering::Relaxed) {
            return history.note(format_args!("not done at the end: {error:#}"));
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// How the pools of the load are configured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pools {
    /// Devices on each node.
    pub(super) devices: u64,
    mtu: u32,
}

impl Pools {
    pub(super) const NORMAL: Self = Self { devices: 20, mtu: 1500 };
    /// Fewer devices, with another MTU for new pods.
    pub(super) const EDITED: Self = Self { devices: 16, mtu: 1400 };

    pub(super) fn apply(self, kubectl: &Kubectl) -> Result<()> {
        let Self { devices, mtu } = self;
        let range = "{raw: {type: host-local, ranges: [[{subnet: 192.0.2.0/24}]]}}";
        let names = format!("namespaces: {{names: [{NAMESPACE}]}}");
        let addressed = format!(
            ", {{name: chaos-addressed, {names}, ipam: {range}}}, {{name: {}, {names}, ipam: {{kubeOVN: {{}}}}}}",
            kube_ovn::NETWORK
        );
        let pool = |name: &str, link: &str, tap_only: &str, more: &str| {
            format!(
                "apiVersion: {PREFIX}/v1alpha1\nkind: MacvtapResourcePool\nmetadata: {{name: {name}}}\nspec:\n  \
                 links: [{{names: [{link}]}}]\n  capacity: {{perLink: {devices}}}\n  tapOnly: {tap_only}\n  \
                 macvtap: {{mtu: {mtu}}}\n  networks: [{{name: {name}, {names}}}{more}]\n---\n"
            )
        };
        let [first, second] = POOLS;
        kubectl.apply(&format!(
            "{}{}",
            pool(first, "dp0", "Forbidden", &addressed),
            pool(second, "dp1", "Allowed", "")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_makes_pods_of_every_shape_and_owner() {
        let workloads = |seed| {
            let mut numbers = Numbers::new(seed, 2);
            (0..50).map(|number| Workload::of(number, &mut numbers)).collect::<Vec<_>>()
        };
        assert_eq!(workloads(3), workloads(3));
        let kinds: BTreeSet<String> =
            workloads(3).iter().map(|w| format!("{:?} {:?}", w.shape, w.owner)).collect();
        assert_eq!(kinds.len(), 10, "{kinds:?}");
    }
}
