//! The troubleshooting guide explains every reason that a user can meet, each in its place, and no other.

use macvtap_crds::v1alpha1::reason::{
    EventReason, LinkReason, NodePoolReason, NodeReason, PoolReason, SampleReason,
};
use std::collections::BTreeSet;

/// The reasons in a text: words in backticks that look like one.
fn reasons(text: &str) -> BTreeSet<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let looks_like_one = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphanumeric())
    };
    quoted.filter(looks_like_one).collect()
}

/// The paragraph that begins like this; nothing if there is none.
fn paragraph<'g>(guide: &'g str, beginning: &str) -> &'g str {
    let rest = guide.find(beginning).map_or("", |start| &guide[start..]);
    rest.split("\n\n").next().unwrap_or_default()
}

/// The reasons in one column of the first table after this text, without its head.
fn column<'g>(guide: &'g str, before: &str, column: usize) -> BTreeSet<&'g str> {
    let rest = guide.find(before).map_or("", |start| &guide[start..]);
    let rows = rest.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    rows.flat_map(|row| reasons(row.split('|').nth(column).unwrap_or_default())).collect()
}

#[test]
fn every_reason_is_explained_in_its_place_and_no_other_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
    let guide = std::fs::read_to_string(path).unwrap();
    for (what, found, all) in [
        ("pool", column(&guide, "## Pools", 2), PoolReason::ALL.iter().map(|r| r.as_str()).collect()),
        (
            "sample",
            reasons(paragraph(&guide, "Samples have")),
            SampleReason::ALL.iter().map(|r| r.as_str()).collect(),
        ),
        (
            "event",
            reasons(paragraph(&guide, "A pool has an Event")),
            EventReason::ALL.iter().map(|r| r.as_str()).collect(),
        ),
        (
            "node",
            reasons(paragraph(&guide, "Conditions of the node as a whole")),
            NodeReason::ALL.iter().map(|r| r.as_str()).collect(),
        ),
        (
            "pool on a node",
            column(&guide, "Conditions of a pool on a node", 1),
            NodePoolReason::ALL.iter().map(|r| r.as_str()).collect(),
        ),
        (
            "link",
            column(&guide, "Why a link is in no pool", 1),
            LinkReason::ALL.iter().map(|r| r.as_str()).collect::<BTreeSet<_>>(),
        ),
    ] {
        let missing: Vec<_> = all.difference(&found).collect();
        let unknown: Vec<_> = found.difference(&all).collect();
        assert!(
            missing.is_empty(),
            "docs/troubleshooting.md does not say what {missing:?} of a {what} means"
        );
        assert!(unknown.is_empty(), "docs/troubleshooting.md explains {unknown:?}, which no {what} says");
    }
}
