//! A pool that cannot be read: another release or a looser schema let it in. Nodes keep the content they have.

use crate::context::{Context, pool_reference};
use crate::controller::ReconcileError;
use crate::overwrite::{self, Part};
use crate::pool::announce;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Resource;
use kube::api::{Api, ApiResource, DynamicObject, ObjectMeta};
use macvtap_crds::condition::{self, ConditionStatus, ConditionType, Finding};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::reason::PoolReason;
use serde::Deserialize;
use serde_json::{Value, json};

/// Reports it in the pool's conditions, or at least in an event. `terminating` is what a pool being deleted waits for.
pub(super) async fn say(
    meta: &ObjectMeta,
    problem: &str,
    terminating: Option<Finding>,
    context: &Context,
) -> Result<(), ReconcileError> {
    let name = meta.name.clone().unwrap_or_default();
    let (uid, generation) = (meta.uid.as_deref().unwrap_or_default(), meta.generation.unwrap_or_default());
    context.metrics.unreadable_pool(&name, terminating.is_some());
    let waits = terminating.as_ref().map_or("", |finding| &finding.message);
    let trouble = format!("{uid} of generation {generation}: {problem}; {waits}");
    if context.pace.has_said(&name, &trouble) {
        return Ok(());
    }
    tracing::warn!(pool = name, error = problem, "pool cannot be read and is left as it was");
    context.metrics.unreadable("pool");
    let kind = ApiResource::erase::<MacvtapResourcePool>(&());
    let pools: Api<DynamicObject> = Api::all_with(context.client.clone(), &kind);
    let failed = |source| ReconcileError::new("write the status of pool", &name, source);
    let Some(pool) = pools.get_opt(&name).await.map_err(failed)? else {
        return Ok(());
    };
    let before = known_conditions(&pool.data);
    let after = conditions(&before, problem, terminating, pool.metadata.generation, Timestamp::now());
    if before == after {
        context.pace.say(&name, trouble);
        return Ok(());
    }
    let body = json!({
        "apiVersion": MacvtapResourcePool::api_version(&()),
        "kind": MacvtapResourcePool::kind(&()),
        "metadata": {"name": name, "uid": pool.metadata.uid},
        "status": {"observedGeneration": pool.metadata.generation, "conditions": after},
    });
    match overwrite::apply(&pools, &name, Part::Status, &body).await {
        Ok(_) => {}
        // Its schema may reject the object as it is, whatever is changed; then the Event has to do.
        Err(kube::Error::Api(status)) if status.code == 422 => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    for event in announce::events(&before, &after) {
        context.announce_on(&event, &pool_reference(&pool.metadata)).await;
    }
    context.pace.say(&name, trouble);
    Ok(())
}

fn conditions(
    before: &[Condition],
    problem: &str,
    terminating: Option<Finding>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let finding = |condition, reason: PoolReason, message: String| Finding {
        condition,
        status: ConditionStatus::False,
        reason: reason.as_str(),
        message,
    };
    let (reason, kept) = match terminating {
        None => (PoolReason::NotAccepted, "nodes keep the content they have"),
        Some(_) => (PoolReason::Terminating, "it is being deleted"),
    };
    let mut findings = vec![
        finding(
            ConditionType::Accepted,
            PoolReason::NotReadable,
            format!("the pool cannot be read, and {kept}: {problem}"),
        ),
        finding(ConditionType::Ready, reason, "the pool cannot be read".to_owned()),
    ];
    if terminating.is_none() {
        let stalled = Finding {
            condition: ConditionType::Stalled,
            status: ConditionStatus::True,
            ..findings[0].clone()
        };
        findings.push(stalled);
    }
    findings.extend(terminating);
    condition::conditions(before, &findings, generation, &Time(now))
}

/// The conditions that are there, as far as they can be read.
fn known_conditions(object: &Value) -> Vec<Condition> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().filter_map(|json| Condition::deserialize(json).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_not_written_twice() {
        let first = conditions(&[], "no such mode", None, Some(3), Timestamp::UNIX_EPOCH);
        let read = known_conditions(&json!({"status": {"conditions": first}}));
        assert_eq!(conditions(&read, "no such mode", None, Some(3), Timestamp::now()), read);
        assert_ne!(conditions(&read, "another", None, Some(3), Timestamp::now()), read);
        assert_eq!(first[0].reason, "NotReadable");
        assert!(condition::holds(&first, ConditionType::Stalled));
    }

    #[test]
    fn a_pool_that_is_being_deleted_says_what_it_waits_for() {
        let finding = Finding {
            condition: ConditionType::Terminating,
            status: ConditionStatus::True,
            reason: PoolReason::DevicesInUse.as_str(),
            message: "1 devices in use on 1 nodes: n1 (1)".to_owned(),
        };
        let said = conditions(&[], "no such mode", Some(finding), Some(3), Timestamp::UNIX_EPOCH);
        let types: Vec<_> = said.iter().map(|condition| (&*condition.type_, &*condition.reason)).collect();
        assert_eq!(
            types,
            [("Accepted", "NotReadable"), ("Ready", "Terminating"), ("Terminating", "DevicesInUse")]
        );
        assert!(said[0].message.contains("is being deleted"), "{}", said[0].message);
    }
}
