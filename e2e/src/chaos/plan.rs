//! What is broken when: derived from a seed alone, so that a seed repeats it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::numbers::Numbers;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// The agent's worker is killed.
    WorkerKilled,
    /// The agent's supervisor is killed, and its worker with it.
    AgentKilled,
    /// The agent's pod is deleted.
    AgentDeleted,
    /// All agents are restarted by their `DaemonSet`, one after the other.
    Rollout,
    /// The operator's leader is killed.
    OperatorKilled,
    /// The operator's leader is stopped for a while, and continues.
    OperatorPaused,
    /// The kubelet is killed, and started after a while.
    KubeletKilled,
    /// The same, and its device checkpoint is lost meanwhile.
    CheckpointLost,
    /// containerd is killed, and started after a while.
    RuntimeKilled,
    /// The API server is killed, and started after a while.
    ApiKilled,
    /// The API server is stopped for a while, and continues.
    ApiPaused,
    /// etcd is killed, and started after a while.
    EtcdKilled,
    /// etcd is stopped for a while, and continues.
    EtcdPaused,
    /// A lower link is set down for a while.
    LinkDown,
    /// A lower link has no carrier for a while.
    CarrierLost,
    /// A lower link has another name for a while.
    LinkRenamed,
    /// A lower link is deleted, and made again after a while.
    LinkDeleted,
    /// A lower link is enslaved to a bridge for a while.
    LinkEnslaved,
    /// The agent's disk is full for a while.
    DiskFull,
    /// The agent's disk is slow for a while.
    DiskSlow,
    /// CNI calls are killed for a while.
    CallsKilled,
    /// A pool is edited.
    PoolEdited,
    /// A node is drained, and takes pods again after a while.
    Drained,
    /// A Node object is deleted; the kubelet makes it again after a while.
    NodeDeleted,
    /// The node's `MacvtapNodeState` is deleted.
    StateDeleted,
    /// A node loses its power, and gets it again after a while.
    NodeRebooted,
    /// kube-ovn's controller is killed, and started after a while.
    KubeOvnControllerKilled,
    /// kube-ovn's controller is stopped for a while, and continues.
    KubeOvnControllerPaused,
    /// kube-ovn's daemon of a node is killed, and started after a while.
    KubeOvnDaemonKilled,
    /// kube-ovn's daemon of a node is stopped for a while, and continues.
    KubeOvnDaemonPaused,
}

/// What a fault occupies: no two faults break the same thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Agent(u8),
    Node(u8),
    Runtime(u8),
    Calls(u8),
    Link(u8),
    State(u8),
    ControlPlane,
    Operator,
    Pools,
    KubeOvnController,
    KubeOvnDaemon(u8),
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// When it begins, after the begin of the run.
    pub(super) begin: Duration,
    /// How long it lasts, if it is one that lasts.
    pub(super) hold: Duration,
    /// What happens.
    pub(super) kind: Kind,
    /// On which node, counted from 1, if it is one of a node.
    pub(super) node: u8,
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?} n{} for {} s", self.kind, self.node, self.hold.as_secs())
    }
}

/// A component gets this long to recover before it is broken again.
const PAUSE: Duration = Duration::from_secs(3);

/// The first fault finds pods that run.
const CALM: Duration = Duration::from_secs(15);

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 30] = [
        Self::WorkerKilled,
        Self::AgentKilled,
        Self::AgentDeleted,
        Self::Rollout,
        Self::OperatorKilled,
        Self::OperatorPaused,
        Self::KubeletKilled,
        Self::CheckpointLost,
        Self::RuntimeKilled,
        Self::ApiKilled,
        Self::ApiPaused,
        Self::EtcdKilled,
        Self::EtcdPaused,
        Self::LinkDown,
        Self::CarrierLost,
        Self::LinkRenamed,
        Self::LinkDeleted,
        Self::LinkEnslaved,
        Self::DiskFull,
        Self::DiskSlow,
        Self::CallsKilled,
        Self::PoolEdited,
        Self::Drained,
        Self::NodeDeleted,
        Self::StateDeleted,
        Self::NodeRebooted,
        Self::KubeOvnControllerKilled,
        Self::KubeOvnControllerPaused,
        Self::KubeOvnDaemonKilled,
        Self::KubeOvnDaemonPaused,
    ];

    fn targets(self, node: u8) -> Vec<Target> {
        match self {
            Self::WorkerKilled | Self::AgentKilled | Self::AgentDeleted | Self::DiskFull | Self::DiskSlow => {
                vec![Target::Agent(node)]
            }
            Self::Rollout => vec![Target::Agent(1), Target::Agent(2)],
            Self::OperatorKilled | Self::OperatorPaused => vec![Target::Operator],
            Self::KubeletKilled | Self::CheckpointLost => vec![Target::Node(node)],
            Self::Drained | Self::NodeDeleted => vec![Target::Node(node), Target::Agent(node)],
            Self::RuntimeKilled => vec![Target::Runtime(node)],
            Self::ApiKilled | Self::ApiPaused | Self::EtcdKilled | Self::EtcdPaused => {
                vec![Target::ControlPlane]
            }
            Self::LinkDown
            | Self::CarrierLost
            | Self::LinkRenamed
            | Self::LinkDeleted
            | Self::LinkEnslaved => vec![Target::Link(node)],
            Self::CallsKilled => vec![Target::Calls(node)],
            Self::NodeRebooted => {
                let parts = [
                    Target::Agent,
                    Target::Node,
                    Target::Runtime,
                    Target::Calls,
                    Target::Link,
                    Target::KubeOvnDaemon,
                ];
                parts.map(|part| part(node)).to_vec()
            }
            Self::PoolEdited => vec![Target::Pools],
            Self::StateDeleted => vec![Target::State(node)],
            Self::KubeOvnControllerKilled | Self::KubeOvnControllerPaused => vec![Target::KubeOvnController],
            Self::KubeOvnDaemonKilled | Self::KubeOvnDaemonPaused => vec![Target::KubeOvnDaemon(node)],
        }
    }
}

/// The faults of a seed, in the order of their begin; all of them have ended after `length`.
pub(super) fn plan(seed: u64, length: Duration, kinds: &[Kind]) -> Vec<Step> {
    let mut numbers = Numbers::new(seed, 1);
    let mut busy: BTreeMap<Target, Duration> = BTreeMap::new();
    let mut steps = Vec::new();
    let mut now = CALM;
    loop {
        now += Duration::from_millis(numbers.between(500, 8_000));
        let hold = Duration::from_secs(numbers.between(1, 15));
        let node = if numbers.chance(50) { 1 } else { 2 };
        let Some(kind) = numbers.pick(kinds).copied().filter(|_| now + hold + PAUSE <= length) else {
            break;
        };
        let targets = kind.targets(node);
        let free = targets.iter().filter_map(|target| busy.get(target)).max().copied().unwrap_or_default();
        // The parts of a node are hardly ever free all at once: what needs them all waits for them.
        let begin = if kind == Kind::NodeRebooted { now.max(free) } else { now };
        if free > begin || begin + hold + PAUSE > length {
            continue;
        }
        busy.extend(targets.into_iter().map(|target| (target, begin + hold + PAUSE)));
        steps.push(Step { begin, hold, kind, node });
    }
    steps.sort_by_key(|step| step.begin);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_mins(10);

    #[test]
    fn a_seed_repeats_its_faults_and_another_gives_others() {
        let first = plan(7, LENGTH, &Kind::ALL);
        assert_eq!(first, plan(7, LENGTH, &Kind::ALL));
        assert_ne!(first, plan(8, LENGTH, &Kind::ALL));
        assert!(first.len() > 60, "{} faults in ten minutes", first.len());
        assert!(plan(7, LENGTH, &[]).is_empty());
    }

    #[test]
    fn faults_overlap_but_nothing_is_broken_twice_at_a_time() {
        let steps: Vec<Step> = (0..20).flat_map(|seed| plan(seed, LENGTH, &Kind::ALL)).collect();
        let seen: std::collections::BTreeSet<Kind> = steps.iter().map(|step| step.kind).collect();
        assert_eq!(seen.len(), Kind::ALL.len(), "some kind never comes");
        let steps = plan(7, LENGTH, &Kind::ALL);
        let mut together = 0;
        for (at, step) in steps.iter().enumerate() {
            assert!(step.begin + step.hold <= LENGTH);
            for earlier in steps[..at].iter().filter(|earlier| earlier.begin + earlier.hold > step.begin) {
                together += 1;
                let mine = step.kind.targets(step.node);
                assert!(!earlier.kind.targets(earlier.node).iter().any(|target| mine.contains(target)));
            }
        }
        assert!(together > 20, "{together} faults overlap");
    }
}
