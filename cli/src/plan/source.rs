//! The pools of a manifest, and all pools as they would be with them.

use super::nothing;
use anyhow::{Context as _, Result};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use macvtap_crds::POOL_FINALIZER;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use serde_json::Value;
use std::io::Read as _;
use std::path::Path;

/// Reads a file, or the standard input.
pub(super) fn read(path: &Path) -> Result<Vec<MacvtapResourcePool>> {
    let place = path.display().to_string();
    let mut text = String::new();
    if place == "-" {
        std::io::stdin().read_to_string(&mut text).context("read the standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("read {place}"))?;
    }
    let pools = parse(&text).with_context(|| format!("read {place}"))?;
    if pools.is_empty() { Err(nothing(&place)) } else { Ok(pools) }
}

fn parse(text: &str) -> Result<Vec<MacvtapResourcePool>> {
    let documents: Vec<Value> = serde_yaml::from_multiple(text)?;
    let mut pools = Vec::new();
    for document in documents {
        let objects = match document.get("items").and_then(Value::as_array) {
            Some(items) => items.clone(),
            None => vec![document],
        };
        for object in objects.into_iter().filter(|object| object["kind"] == "MacvtapResourcePool") {
            let name =
                object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without name").to_owned();
            pools
                .push(serde_json::from_value(object).with_context(|| format!("MacvtapResourcePool {name}"))?);
        }
    }
    Ok(pools)
}

/// The pools as they would be: what exists keeps its age, what is new is the youngest.
pub(super) fn merged(
    present: &[MacvtapResourcePool],
    planned: &[MacvtapResourcePool],
    now: Timestamp,
) -> Vec<MacvtapResourcePool> {
    let mut all = present.to_vec();
    for pool in planned {
        if let Some(old) = all.iter_mut().find(|old| old.name_any() == pool.name_any()) {
            old.spec = pool.spec.clone();
            old.metadata.generation = old.metadata.generation.map(|generation| generation + 1);
            continue;
        }
        let mut new = pool.clone();
        new.metadata.uid = Some(format!("planned-{}", pool.name_any()));
        new.metadata.generation = Some(1);
        new.metadata.creation_timestamp = Some(Time(now));
        all.push(new);
    }
    // The operator adds it before it sends a pool to nodes.
    for pool in &mut all {
        let finalizers = pool.finalizers_mut();
        if !finalizers.iter().any(|finalizer| finalizer == POOL_FINALIZER) {
            finalizers.push(POOL_FINALIZER.to_owned());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;
    use serde_json::json;

    #[test]
    fn pools_are_found_among_other_documents_and_in_lists() {
        let text = "kind: Namespace\nmetadata: {name: a}\n---\nkind: List\nitems:\n- apiVersion: macvtap.network.kubevirt.io/v1alpha1\n  \
                    kind: MacvtapResourcePool\n  metadata: {name: dp}\n  spec: {links: [{names: [eth1]}]}\n";
        let pools = parse(text).unwrap();
        assert_eq!((pools.len(), pools[0].name_any().as_str()), (1, "dp"));
        assert!(
            format!("{:#}", parse("kind: MacvtapResourcePool\nmetadata: {name: x}\n").unwrap_err())
                .contains("MacvtapResourcePool x")
        );
    }

    #[test]
    fn an_edited_pool_keeps_its_age_and_a_new_one_is_the_youngest() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let all = merged(
            &[pool("old", json!({}))],
            &[pool("old", json!({"priority": 7})), pool("new", json!({}))],
            now,
        );
        assert_eq!(all[0].uid().as_deref(), Some("uid-old"));
        assert_eq!((all[0].spec.settings.priority, all[0].metadata.generation), (7, Some(2)));
        assert_eq!(all[1].creation_timestamp(), Some(Time(now)));
    }
}
