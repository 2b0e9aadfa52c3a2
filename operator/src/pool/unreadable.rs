//! A pool that cannot be read: another release or a looser schema let it in. Nodes keep what they were told of it.

use super::PoolError;
use crate::context::{Context, pool_reference};
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
use std::time::Duration;

/// Says so in the pool's conditions, or at least in an event.
pub async fn say(meta: &ObjectMeta, problem: &str, context: &Context) -> Result<Option<Duration>, PoolError> {
    let name = meta.name.clone().unwrap_or_default();
    let (uid, generation) = (meta.uid.as_deref().unwrap_or_default(), meta.generation.unwrap_or_default());
    let trouble = format!("{uid} of generation {generation}: {problem}");
    if context.pace.has_said(&name, &trouble) {
        return Ok(None);
    }
    tracing::warn!(pool = name, error = problem, "pool cannot be read and is left as it was");
    context.metrics.unreadable("pool");
    let kind = ApiResource::erase::<MacvtapResourcePool>(&());
    let pools: Api<DynamicObject> = Api::all_with(context.client.clone(), &kind);
    let failed = |source| PoolError::Status { pool: name.clone(), source: Box::new(source) };
    let Some(pool) = pools.get_opt(&name).await.map_err(failed)? else {
        return Ok(None);
    };
    let before = known_conditions(&pool.data);
    let after = conditions(&before, problem, pool.metadata.generation, Timestamp::now());
    if before == after {
        context.pace.say(&name, trouble);
        return Ok(None);
    }
    let body = json!({
        "apiVersion": MacvtapResourcePool::api_version(&()),
        "kind": MacvtapResourcePool::kind(&()),
        "metadata": {"name": name, "uid": pool.metadata.uid},
        "status": {"observedGeneration": pool.metadata.generation, "conditions": after},
    });
    match overwrite::apply(&pools, &name, Part::Status, &body).await {
        Ok(()) => {}
        // Its schema may refuse the object as it is, whoever changes it; the event must do.
        Err(kube::Error::Api(status)) if status.code == 422 => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    for event in announce::events(&before, &after) {
        context.announce_on(&event, &pool_reference(&pool.metadata)).await;
    }
    context.pace.say(&name, trouble);
    Ok(None)
}

fn conditions(
    before: &[Condition],
    problem: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let finding = |condition, reason: PoolReason, message: String| Finding {
        condition,
        status: ConditionStatus::False,
        reason: reason.as_str(),
        message,
    };
    let findings = [
        finding(
            ConditionType::Accepted,
            PoolReason::NotReadable,
            format!("the pool cannot be read, and nodes keep what they were told of it: {problem}"),
        ),
        finding(ConditionType::Ready, PoolReason::NotAccepted, "the pool cannot be read".to_owned()),
    ];
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
        let first = conditions(&[], "no such mode", Some(3), Timestamp::UNIX_EPOCH);
        let read = known_conditions(&json!({"status": {"conditions": first}}));
        assert_eq!(conditions(&read, "no such mode", Some(3), Timestamp::now()), read);
        assert_ne!(conditions(&read, "another", Some(3), Timestamp::now()), read);
        assert_eq!(first[0].reason, "NotReadable");
    }
}
