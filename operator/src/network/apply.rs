//! Writes and removes network attachment definitions; never touches one that is not ours.

use super::kind::NetworkAttachmentDefinition;
use super::plan::{Desired, Key, Plan, is_orphan, is_ours, is_written_by_us, key, same};
use super::{NetworkReport, Problem};
use crate::refusal;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use macvtap_crds::v1alpha1::reason::PoolReason;
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_LABEL};
use std::collections::BTreeSet;

/// Does what the plan says, and goes on after an error. `pools` has the UIDs of all pools there are.
pub async fn apply(client: &Client, desired: Desired, plan: Plan, pools: &BTreeSet<String>) -> NetworkReport {
    let Desired { networks, problems: unusable } = desired;
    let mut problems = Vec::new();
    let mut repaired = Vec::new();
    let mut adopted = Vec::new();
    let mut ready = plan.keep.len();
    for key in plan.create.iter().chain(&plan.repair) {
        let Some(network) = networks.get(key) else {
            continue;
        };
        let written = if plan.repair.contains(key) {
            repair(client, network).await.map(|needed| repaired.extend(needed.then(|| key.clone())))
        } else {
            create(client, network, pools).await.map(|orphan| adopted.extend(orphan.then(|| key.clone())))
        };
        match written {
            Ok(()) => ready += 1,
            Err(problem) => problems.push(problem),
        }
    }
    for (key, uid) in plan.delete {
        if let Err(error) = delete_ours(client, &key, uid).await {
            problems.push(failed(&key, &error));
        }
    }
    problems.extend(unusable);
    NetworkReport { desired: networks.len(), ready, problems, repaired, adopted, kept: Vec::new() }
}

/// Deletes every network of a pool that the operator wrote. Asks the API server, not the cache: what the cache has not seen yet would remain
/// for ever. Gives those that are still there.
pub async fn remove_all(client: &Client, pool: &str, uid: &str) -> Result<Vec<Key>, kube::Error> {
    let all: Api<NetworkAttachmentDefinition> = Api::all(client.clone());
    let found = match all.list(&ListParams::default().labels(&format!("{POOL_LABEL}={pool}"))).await {
        Ok(found) => found.items,
        // No such kind, hence no such object.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut left = Vec::new();
    let ours =
        |network: &&NetworkAttachmentDefinition| is_ours(*network, pool, uid) && is_written_by_us(*network);
    for network in found.iter().filter(ours) {
        let key = key(network);
        if network.metadata.deletion_timestamp.is_none() {
            delete(client, &key, network.uid()).await?;
        }
        // A finalizer of somebody else may keep it; the pool then waits.
        if network.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty()) {
            left.push(key);
        }
    }
    Ok(left)
}

/// Deletes a network unless only its labels are ours.
async fn delete_ours(client: &Client, key: &Key, uid: Option<String>) -> Result<(), kube::Error> {
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    match api.get_metadata_opt(&key.1).await? {
        Some(there) if is_written_by_us(&there) => delete(client, key, uid).await,
        Some(_) | None => Ok(()),
    }
}

/// Deletes a network if it still is the one with this UID.
async fn delete(client: &Client, (namespace, name): &Key, uid: Option<String>) -> Result<(), kube::Error> {
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), namespace);
    let preconditions = Some(Preconditions { uid, resource_version: None });
    match api.delete(name, &DeleteParams { preconditions, ..Default::default() }).await {
        Ok(_) => {
            tracing::info!(namespace, network = %name, "network removed");
            Ok(())
        }
        // It is gone, or another one has the name by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a network if nobody has the name, or takes over one that nobody owns any more. Returns whether it did the
/// latter.
async fn create(
    client: &Client,
    network: &NetworkAttachmentDefinition,
    pools: &BTreeSet<String>,
) -> Result<bool, Problem> {
    let key = key(network);
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    let params = PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..Default::default() };
    match api.create(&params, network).await {
        Ok(_) => {
            tracing::info!(namespace = %key.0, network = %key.1, "network created");
            return Ok(false);
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(failed(&key, &error)),
    }
    let there = api.get_opt(&key.1).await.map_err(|error| failed(&key, &error))?;
    let orphan = there.as_ref().is_some_and(|there| {
        let pool = network.labels().get(POOL_LABEL).map_or("", String::as_str);
        is_orphan(there, pool, pools)
    });
    match there {
        // Ours already: the cache has not seen it yet. Or gone again, and made by the same write.
        Some(there) if !orphan && !same_owner(&there, network) => Err(conflict(&key)),
        Some(_) | None => write(client, network).await.map(|()| orphan),
    }
}

/// Makes one of ours as it should be. Says whether that was needed: the cache may not have seen our own last write.
async fn repair(client: &Client, network: &NetworkAttachmentDefinition) -> Result<bool, Problem> {
    let key = key(network);
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    let there = api.get_opt(&key.1).await.map_err(|error| failed(&key, &error))?;
    match there {
        Some(there) if !same_owner(&there, network) => Err(conflict(&key)),
        Some(there) if same(&there, network) => Ok(false),
        Some(_) | None => write(client, network).await.map(|()| true),
    }
}

async fn write(client: &Client, network: &NetworkAttachmentDefinition) -> Result<(), Problem> {
    let key = key(network);
    let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    match api.patch(&key.1, &params, &Patch::Apply(network)).await {
        Ok(_) => {
            tracing::info!(namespace = %key.0, network = %key.1, "network written");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Err(conflict(&key)),
        Err(error) => Err(failed(&key, &error)),
    }
}

fn same_owner(there: &NetworkAttachmentDefinition, wanted: &NetworkAttachmentDefinition) -> bool {
    let label = |key: &str| wanted.labels().get(key).map_or("", String::as_str);
    is_ours(there, label(POOL_LABEL), label(macvtap_crds::POOL_UID_LABEL))
}

fn conflict((namespace, name): &Key) -> Problem {
    Problem {
        reason: PoolReason::NADConflict,
        message: format!(
            "NetworkAttachmentDefinition {namespace}/{name} was not made by this pool and is left alone; rename the network, or delete the other"
        ),
    }
}

fn failed((namespace, name): &Key, error: &kube::Error) -> Problem {
    Problem {
        reason: PoolReason::NetworkWriteFailed,
        message: format!("NetworkAttachmentDefinition {namespace}/{name}: {}", refusal::text(error)),
    }
}
