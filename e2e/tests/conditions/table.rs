//! Which reasons are reached here, and where the others are tested.

use macvtap_crds::v1alpha1::reason::{LinkReason, NodePoolReason, NodeReason, PoolReason, SampleReason};
use std::collections::BTreeSet;

/// What has reasons: the first word of a fact.
const REACHED: [(&str, &[&str]); 5] = [
    (
        "link",
        &[
            "Excluded",
            "DefaultRoute",
            "HostAddress",
            "HasUpper",
            "EnslavedTo",
            "PassthruInUse",
            "KindNotSupported",
            "NameNotUsable",
            "CapacityReached",
            "Draining",
            "NoCarrier",
            "AdminDown",
            "ModeChangePending",
            "MtuTooSmall",
            "IndexTaken",
        ],
    ),
    (
        "part",
        &[
            "Serving",
            "AsExpected",
            "DryRun",
            "NoMatchingLink",
            "NoHealthyLink",
            "LinksUnhealthy",
            "DevicesDead",
            "KubeletUnreachable",
            "ModeChangePending",
            "MtuTooSmall",
            "IndexTaken",
            "Draining",
            "Drained",
        ],
    ),
    ("node", &["AsExpected", "PoolsNotReady", "PoolsDegraded", "KubeletUnreachable"]),
    (
        "pool",
        &[
            "Valid",
            "ResourceNameConflict",
            "AllNodesReady",
            "NoMatchingNodes",
            "NoMatchingLinks",
            "NodesServing",
            "NoNodeServing",
            "NodesNotReady",
            "DryRun",
            "NotAccepted",
            "NodesUpdating",
            "UpToDate",
            "RolloutHalted",
            "AsExpected",
            "NodesDegraded",
            "NodesUnreachable",
            "AllNetworksReady",
            "NoNetworks",
            "NADConflict",
            "NamespaceNotFound",
            "NetworkWriteFailed",
            "NetworkNameNotUsable",
            "DevicesInUse",
            "Terminating",
        ],
    ),
    ("sample", &["Unreachable", "Updating", "Waiting"]),
];

/// Reason, why it is not reached here, and where it is tested.
const ELSEWHERE: [(&str, &str, &str); 29] = [
    (
        "link",
        "LostToPool",
        "a link that has a pool has no reason, the loser says it: node-agent/src/pools/selection/tests.rs",
    ),
    ("link", "NotSelected", "said of NICs, bonds and VLANs only: node-agent/src/report/nodestate/tests.rs"),
    (
        "link",
        "LinkGone",
        "answered to an Allocate, when the link is in no list any more: node-agent/src/devices/offer.rs",
    ),
    ("link", "LinkReplaced", "needs NICs with permanent addresses: node-agent/src/report/nodestate/tests.rs"),
    (
        "link",
        "KernelWithoutMacvtap",
        "needs another kernel: e2e/guest-lab, node-agent/src/pools/selection/tests.rs",
    ),
    ("link", "MtuLowered", "node-agent/src/report/nodestate/tests/links.rs"),
    (
        "link",
        "HeadersNotReordered",
        "needs a kernel with VLANs: node-agent/src/report/nodestate/tests/links.rs",
    ),
    ("link", "FewMacFilters", "needs a virtual function: node-agent/src/report/nodestate/tests/links.rs"),
    ("link", "InPod", "needs NICs on PCI: node-agent/src/report/nodestate/tests.rs"),
    ("part", "Registering", "over in milliseconds: node-agent/src/report/nodestate/tests.rs"),
    (
        "part",
        "RegistrationFailed",
        "the kubelet refuses no name the schema lets pass: node-agent/src/report/nodestate/tests.rs",
    ),
    (
        "part",
        "TableNotWritten",
        "needs a full disk under the agent: node-agent/tests, node-agent/src/report/nodestate/tests.rs",
    ),
    (
        "part",
        "ResourceNameTaken",
        "the operator tells no node of two such pools: node-agent/src/report/nodestate/tests.rs",
    ),
    (
        "part",
        "NotSupported",
        "operator and agent of different releases: node-agent/src/report/nodestate/tests.rs",
    ),
    (
        "node",
        "SpecNotReadable",
        "needs a looser schema and no operator: node-agent/src/report/nodestate/tests.rs",
    ),
    ("node", "PluginMissing", "takes the plugin from under the agent: e2e/tests/agent/plugin.rs"),
    (
        "node",
        "NoOtherPlugin",
        "needs a CNI directory without others' plugins: node-agent/src/install/keep/tests.rs",
    ),
    ("part", "PluginMissing", "takes the plugin from under the agent: e2e/tests/agent/plugin.rs"),
    ("pool", "InvalidSelector", "needs a looser schema: e2e/tests/api_bad_objects.rs"),
    ("pool", "NotReadable", "needs a looser schema: e2e/tests/api_bad_objects.rs"),
    ("pool", "Pending", "over as soon as the operator looks: e2e/tests/api_crds.rs"),
    ("pool", "NodesDraining", "over as soon as the agents answer: operator/src/pool/report/tests.rs"),
    ("pool", "RemovingNetworks", "over with the requests: operator/src/pool/report/tests/availability.rs"),
    ("pool", "NADKindMissing", "needs a cluster without Multus: e2e/tests/api_operator.rs"),
    ("pool", "NetworksUpdating", "a network is written, or says why not: operator/src/pool/report/tests.rs"),
    ("sample", "StatusNotReadable", "needs a looser schema: e2e/tests/api_bad_objects.rs"),
    ("sample", "AgentNotStarted", "minutes without a start: operator/src/pool/report/tests.rs"),
    ("sample", "TooManyPools", "65 pools: e2e/tests/api_operator.rs"),
    ("sample", "NodeTerminating", "needs a Node with a finalizer: e2e/tests/api_nodes.rs"),
];

/// What is reached here.
pub(crate) fn reached() -> impl Iterator<Item = (String, String)> {
    REACHED.iter().flat_map(|(family, reasons)| {
        reasons.iter().map(|reason| ((*family).to_owned(), (*reason).to_owned()))
    })
}

/// Family and reason of a fact.
pub(crate) fn reason_of(fact: &str) -> (String, String) {
    let mut words = fact.split_whitespace();
    let family = words.next().unwrap_or_default();
    (family.to_owned(), words.next_back().unwrap_or_default().to_owned())
}

#[test]
fn every_reason_of_the_api_is_reached_here_or_tested_elsewhere() {
    let all = |family: &str, reasons: Vec<&str>| -> Vec<(String, String)> {
        reasons.into_iter().map(|reason| (family.to_owned(), reason.to_owned())).collect()
    };
    let known: BTreeSet<_> = [
        all("link", LinkReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        all("part", NodePoolReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        all("node", NodeReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        all("pool", PoolReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        all("sample", SampleReason::ALL.iter().map(|reason| reason.as_str()).collect()),
    ]
    .concat()
    .into_iter()
    .collect();
    let mut listed: Vec<_> = reached().collect();
    listed.extend(ELSEWHERE.iter().map(|(family, reason, _)| ((*family).to_owned(), (*reason).to_owned())));
    for reason in &known {
        let times = listed.iter().filter(|other| *other == reason).count();
        assert_eq!(times, 1, "{reason:?} must stand in the table once: reached here, or tested elsewhere");
    }
    // A sample may also have a reason of the node, or of the pool.
    let strange: Vec<_> = listed
        .iter()
        .filter(|(family, _)| family != "sample")
        .filter(|reason| !known.contains(reason))
        .collect();
    assert_eq!(strange, Vec::<&(String, String)>::new(), "the API has no such reason");
}

#[test]
fn every_reason_is_explained_to_users() {
    let path = e2e::layout::Checkout::here().path("docs/troubleshooting.md");
    let text = std::fs::read_to_string(path).unwrap();
    let words: BTreeSet<&str> = text.split('`').collect();
    let missing: Vec<_> = reached()
        .chain(ELSEWHERE.iter().map(|(family, reason, _)| ((*family).to_owned(), (*reason).to_owned())))
        .filter(|(_, reason)| !words.contains(reason.as_str()))
        .collect();
    assert_eq!(missing, Vec::<(String, String)>::new());
}
