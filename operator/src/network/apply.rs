//! Writes and removes network attachment definitions; never touches one that is not ours.

use super::kind::NetworkAttachmentDefinition;
use super::plan::{Desired, Key, Plan, is_ours, key, same};
use super::{NetworkReport, Problem};
use crate::refusal;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use macvtap_crds::v1alpha1::reason::PoolReason;
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_LABEL};

/// Does what the plan says, and goes on after an error.
pub async fn apply(client: &Client, desired: Desired, plan: Plan) -> NetworkReport {
    let Desired { networks, problems: unusable } = desired;
    let mut problems = Vec::new();
    let mut repaired = Vec::new();
    let mut ready = plan.keep.len();
    for key in plan.create.iter().chain(&plan.repair) {
        let Some(network) = networks.get(key) else {
            continue;
        };
        let written = if plan.repair.contains(key) {
            repair(client, network).await.map(|needed| repaired.extend(needed.then(|| key.clone())))
        } else {
            create(client, network).await
        };
        match written {
            Ok(()) => ready += 1,
            Err(problem) => problems.push(problem),
        }
    }
    for (key, uid) in plan.delete {
        let (namespace, name) = &key;
        match delete(client, &key, uid).await {
            Ok(()) => tracing::info!(namespace, network = %name, "network removed"),
            Err(error) => problems.push(failed(&key, &error)),
        }
    }
    problems.extend(unusable);
    NetworkReport { desired: networks.len(), ready, problems, repaired, kept: Vec::new() }
}

/// Deletes every network of a pool. Asks the API server, not the cache: what the cache has not seen yet would remain
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
    for network in found.iter().filter(|network| is_ours(*network, pool, uid)) {
        let key = key(network);
        if network.metadata.deletion_timestamp.is_none() {
            delete(client, &key, network.uid()).await?;
            let (namespace, name) = &key;
            tracing::info!(namespace, network = %name, "network removed");
        }
        // A finalizer of somebody else may keep it; the pool then waits.
        if network.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty()) {
            left.push(key);
        }
    }
    Ok(left)
}

/// Deletes a network if it still is the one with this UID.
async fn delete(client: &Client, (namespace, name): &Key, uid: Option<String>) -> Result<(), kube::Error> {
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), namespace);
    let preconditions = Some(Preconditions { uid, resource_version: None });
    match api.delete(name, &DeleteParams { preconditions, ..Default::default() }).await {
        // Another one has the name by now.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        deleted => ignore_missing(deleted),
    }
}

/// Makes a network if nobody has the name. What somebody makes between question and answer has another field manager,
/// so an apply without force is refused.
async fn create(client: &Client, network: &NetworkAttachmentDefinition) -> Result<(), Problem> {
    let key = key(network);
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    match api.get_opt(&key.1).await {
        Ok(None) => write(client, network, &PatchParams::apply(OPERATOR_FIELD_MANAGER)).await,
        // Ours already: the cache has not seen it yet.
        Ok(Some(there)) if same_owner(&there, network) => {
            write(client, network, &PatchParams::apply(OPERATOR_FIELD_MANAGER).force()).await
        }
        Ok(Some(_)) => Err(conflict(&key)),
        Err(error) => Err(failed(&key, &error)),
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
        Some(_) | None => {
            write(client, network, &PatchParams::apply(OPERATOR_FIELD_MANAGER).force()).await.map(|()| true)
        }
    }
}

async fn write(
    client: &Client,
    network: &NetworkAttachmentDefinition,
    params: &PatchParams,
) -> Result<(), Problem> {
    let key = key(network);
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    match api.patch(&key.1, params, &Patch::Apply(network)).await {
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

fn ignore_missing<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        // 409: our precondition does not hold, so somebody made another one under its name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}
