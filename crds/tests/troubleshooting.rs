//! Every reason that a user can meet is in the troubleshooting guide.

use macvtap_crds::v1alpha1::reason::{LinkReason, NodePoolReason, NodeReason, PoolReason, SampleReason};

#[test]
fn every_reason_is_explained() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let words = LinkReason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .chain(NodePoolReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(NodeReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(PoolReason::ALL.iter().map(|reason| reason.as_str()))
        .chain(SampleReason::ALL.iter().map(|reason| reason.as_str()));
    let missing: Vec<_> = words.filter(|word| !guide.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md says nothing about {missing:?}");
}
