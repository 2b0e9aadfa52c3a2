//! Writes and removes network attachment definitions; never touches one that is not ours.

use super::former::is_of_former;
use super::kind::{NetworkAttachmentDefinition, NetworkKey};
use super::plan::{Desired, NetworkPlan, is_free, is_ours, is_written_by_us, key, same};
use super::report::{NetworkReport, Problem};
use crate::refusal;
use futures::{StreamExt, stream};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use macvtap_crds::v1alpha1::reason::PoolReason;
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_LABEL};
use std::collections::BTreeSet;

/// How many networks of one pool are written at once.
const AT_ONCE: usize = 8;

/// One write of a plan.
enum NetworkWrite {
    Create(NetworkAttachmentDefinition),
    Repair(NetworkAttachmentDefinition),
    Delete(NetworkKey, Option<String>),
}

/// What a pass came to.
#[derive(Debug)]
pub struct Pass {
    /// What became of the networks.
    pub report: NetworkReport,
    /// Whether it went through all of them.
    pub is_complete: bool,
    /// Whether the API server may still carry out a write whose answer was lost.
    pub has_lost: bool,
}

/// What a write came to.
enum Done {
    Ready,
    Repaired(NetworkKey),
    Adopted(NetworkKey),
    Removed,
}

/// Why a write failed.
struct Failure {
    problem: Problem,
    /// Whether the API server may carry it out nevertheless.
    is_lost: bool,
}

/// Carries out the plan, and goes on after an error. `pools` has the UIDs of all pools; `is_current` says whether the plan
/// is still wanted: a pass over thousands of networks begins no further write when their pool is changed or deleted. Those
/// under way are waited for: given up, they could take effect after the networks were removed.
pub async fn apply(
    client: &Client,
    desired: Desired,
    plan: NetworkPlan,
    pools: &BTreeSet<String>,
    is_current: impl Fn() -> bool,
) -> Pass {
    let Desired { mut networks, problems: unusable } = desired;
    let mut report =
        NetworkReport { desired: networks.len(), ready: plan.keep.len(), ..NetworkReport::default() };
    let (mut is_complete, mut has_lost) = (true, false);
    let mut steps: Vec<NetworkWrite> =
        plan.create.iter().filter_map(|key| networks.remove(key)).map(NetworkWrite::Create).collect();
    steps.extend(plan.repair.iter().filter_map(|key| networks.remove(key)).map(NetworkWrite::Repair));
    steps.extend(plan.delete.into_iter().map(|(key, uid)| NetworkWrite::Delete(key, uid)));
    let is_current = &is_current;
    let steps = stream::iter(steps).map(|step| async move {
        if is_current() { Some(perform(client, step, pools).await) } else { None }
    });
    // In order, so that the first problem is the same in each pass.
    let mut steps = steps.buffered(AT_ONCE);
    while let Some(done) = steps.next().await {
        match done {
            None => is_complete = false,
            Some(Ok(Done::Removed)) => {}
            Some(Ok(done)) => {
                report.ready += 1;
                match done {
                    Done::Repaired(key) => report.repaired.push(key),
                    Done::Adopted(key) => report.adopted.push(key),
                    Done::Ready | Done::Removed => {}
                }
            }
            Some(Err(Failure { problem, is_lost })) => {
                has_lost |= is_lost;
                report.problems.push(problem);
            }
        }
    }
    report.problems.extend(unusable);
    Pass { report, is_complete, has_lost }
}

async fn perform(client: &Client, step: NetworkWrite, pools: &BTreeSet<String>) -> Result<Done, Failure> {
    match step {
        NetworkWrite::Create(network) => {
            let adopted = create(client, &network, pools).await?;
            Ok(if adopted { Done::Adopted(key(&network)) } else { Done::Ready })
        }
        NetworkWrite::Repair(network) => repair(client, &network).await,
        NetworkWrite::Delete(key, uid) => match delete_ours(client, &key, uid).await {
            Ok(()) => Ok(Done::Removed),
            Err(error) => Err(failed(&key, &error)),
        },
    }
}

/// Deletes every network of a pool, and of earlier ones of its name, that the operator wrote. Asks the API server, not the cache: what the cache has not
/// seen yet would remain for ever. Returns those that finalizers of others keep although they are deleted.
pub async fn remove_all(
    client: &Client,
    pool: &str,
    uid: &str,
    pools: &BTreeSet<String>,
) -> Result<Vec<NetworkKey>, kube::Error> {
    let all: Api<NetworkAttachmentDefinition> = Api::all(client.clone());
    let mut found = match all.list(&ListParams::default().labels(&format!("{POOL_LABEL}={pool}"))).await {
        Ok(found) => found.items,
        // No such kind, hence no such object.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let is_its = |network: &_| is_ours(network, pool, uid) || is_of_former(network, pool, pools);
    found.retain(|network| is_its(network) && is_written_by_us(network));
    let deletions: Vec<_> = found
        .iter()
        .filter(|network| network.metadata.deletion_timestamp.is_none())
        .map(|network| (key(network), network.uid()))
        .collect();
    let mut deletions = stream::iter(deletions)
        .map(|(key, uid)| async move { delete(client, &key, uid).await })
        .buffer_unordered(AT_ONCE);
    while let Some(deleted) = deletions.next().await {
        deleted?;
    }
    found.retain(|network| !network.finalizers().is_empty());
    Ok(found.iter().map(key).collect())
}

/// Deletes a network unless only its labels are ours.
async fn delete_ours(client: &Client, key: &NetworkKey, uid: Option<String>) -> Result<(), kube::Error> {
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    match api.get_metadata_opt(&key.1).await? {
        Some(there) if is_written_by_us(&there) => delete(client, key, uid).await,
        Some(_) | None => Ok(()),
    }
}

/// Deletes a network if it still is the one with this UID.
async fn delete(
    client: &Client,
    (namespace, name): &NetworkKey,
    uid: Option<String>,
) -> Result<(), kube::Error> {
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
) -> Result<bool, Failure> {
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
    match there {
        // Ours already: the cache has not seen it yet. Or gone again, and made by the same write.
        Some(there) if same_owner(&there, network) => write(client, network).await.map(|()| false),
        None => write(client, network).await.map(|()| false),
        Some(there) if is_free(&there, network, pools) => write(client, network).await.map(|()| true),
        Some(_) => Err(conflict(&key)),
    }
}

/// Makes one of ours as it should be. The cache may not have seen our own last write.
async fn repair(client: &Client, network: &NetworkAttachmentDefinition) -> Result<Done, Failure> {
    let key = key(network);
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &key.0);
    let done = match api.get_opt(&key.1).await.map_err(|error| failed(&key, &error))? {
        Some(there) if !same_owner(&there, network) => return Err(conflict(&key)),
        // What the operator did not write it would not delete either.
        Some(there) if !is_written_by_us(&there) => Done::Adopted(key),
        Some(there) if same(&there, network) => return Ok(Done::Ready),
        Some(_) | None => Done::Repaired(key),
    };
    write(client, network).await.map(|()| done)
}

async fn write(client: &Client, network: &NetworkAttachmentDefinition) -> Result<(), Failure> {
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

fn conflict((namespace, name): &NetworkKey) -> Failure {
    let message = format!(
        "NetworkAttachmentDefinition {namespace}/{name} was not made by this pool and is left alone; rename the network, or delete the other"
    );
    Failure { problem: Problem { reason: PoolReason::NADConflict, message }, is_lost: false }
}

fn failed((namespace, name): &NetworkKey, error: &kube::Error) -> Failure {
    let message = format!("NetworkAttachmentDefinition {namespace}/{name}: {}", refusal::text(error));
    let problem = Problem { reason: PoolReason::NetworkWriteFailed, message };
    Failure { problem, is_lost: !refusal::is_refused(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::kind::NetworkAttachmentDefinitionSpec;
    use axum::http::{Request, Response};
    use kube::client::Body;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tower::{BoxError, service_fn};

    /// An API server that takes a while to create what it is asked to, and counts requests and answers.
    fn creating(requests: &Arc<AtomicUsize>, answers: &Arc<AtomicUsize>) -> Client {
        let (requests, answers) = (Arc::clone(requests), Arc::clone(answers));
        let service = service_fn(move |request: Request<Body>| {
            let number = requests.fetch_add(1, Ordering::SeqCst);
            let answers = Arc::clone(&answers);
            async move {
                // The earlier ones of those under way take longer.
                for _ in 0..AT_ONCE - number % AT_ONCE {
                    tokio::task::yield_now().await;
                }
                let body = request.into_body().collect_bytes().await?;
                answers.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(Response::builder().status(201).body(Body::from(body.to_vec()))?)
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn a_pass_ends_when_its_pool_has_changed_and_leaves_no_write_on_its_way() {
        let key = |i: usize| ("tenant".to_owned(), format!("net-{i:03}"));
        let network = |i: usize| {
            let mut network =
                NetworkAttachmentDefinition::new(&key(i).1, NetworkAttachmentDefinitionSpec::default());
            network.metadata.namespace = Some(key(i).0);
            (key(i), network)
        };
        let run = async |until: usize| {
            let [requests, answers] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
            let desired = Desired { networks: (0..100).map(network).collect(), problems: Vec::new() };
            let plan = NetworkPlan { create: (0..100).map(key).collect(), ..NetworkPlan::default() };
            let is_current = || requests.load(Ordering::SeqCst) < until;
            let client = creating(&requests, &answers);
            let pass = apply(&client, desired, plan, &BTreeSet::new(), is_current).await;
            let [requests, answers] = [requests, answers].map(|count| count.load(Ordering::SeqCst));
            assert_eq!(requests, answers);
            (pass, requests)
        };
        let (pass, requests) = run(usize::MAX).await;
        assert!(pass.is_complete && !pass.has_lost);
        assert_eq!((pass.report.desired, pass.report.ready, requests), (100, 100, 100));
        let (pass, requests) = run(20).await;
        assert!(!pass.is_complete && requests < 20 + AT_ONCE, "{requests} requests");
    }

    #[tokio::test]
    async fn a_write_without_an_answer_is_lost_and_one_that_is_refused_is_not() {
        let run = async |answer: fn() -> Result<Response<Body>, BoxError>| {
            let client = Client::new(service_fn(move |_: Request<Body>| async move { answer() }), "default");
            let mut network =
                NetworkAttachmentDefinition::new("net", NetworkAttachmentDefinitionSpec::default());
            network.metadata.namespace = Some("tenant".to_owned());
            let plan = NetworkPlan { create: vec![key(&network)], ..NetworkPlan::default() };
            let desired = Desired { networks: [(key(&network), network)].into(), problems: Vec::new() };
            apply(&client, desired, plan, &BTreeSet::new(), || true).await.has_lost
        };
        assert!(run(|| Err("connection reset".into())).await);
        assert!(run(|| Ok(Response::builder().status(504).body(Body::empty())?)).await);
        assert!(!run(|| Ok(Response::builder().status(403).body(Body::empty())?)).await);
    }
}
