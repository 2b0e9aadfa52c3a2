//! Gives node states the pools of the configurations that they name.

use crate::context::Context;
use crate::states::{RawState, Shared};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;

/// Gives the state of an event the pools that it shares with others. Where these cannot be read, or where a kind that does not
/// know the field dropped the name of the configuration, its node may have been sent whatever it could have by now.
pub(super) async fn resolve(context: &Context, mut event: Event<RawState>) -> Event<RawState> {
    let (Event::Apply(state) | Event::InitApply(state) | Event::Delete(state)) = &mut event else {
        return event;
    };
    let found = match state.config().map(str::to_owned) {
        Some(name) => {
            let read = context.configs.content(&context.client, &name).await;
            read.map_err(|why| format!("spec.config: MacvtapNodeConfig {name}: {why}"))
        }
        None if state.spec.get("pools").is_some() => return event,
        None => Err("spec has neither pools nor config".to_owned()),
    };
    state.shared = match found {
        Ok(common) => Shared::Known(common),
        Err(why) => {
            let node = context.nodes.get(&ObjectRef::new(&state.name_any()));
            let assumed = node.map(|node| context.catalog().assumed(node.labels())).unwrap_or_default();
            Shared::Unknown { why, assumed }
        }
    };
    event
}
