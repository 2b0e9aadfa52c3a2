//! Pure: how the rollout of a pool goes on, by how its nodes stand to it.

use super::assess::{Assessment, Subject};
use crate::rollout::{self, Former, Grants, Member, RolloutStep};
use macvtap_crds::v1alpha1::MacvtapResourcePool;

/// Returns which nodes change next, and whether the rollout stops. `grants` has how far it had come.
pub fn advance(
    pool: &MacvtapResourcePool,
    subject: &Subject<'_>,
    assessments: &[Assessment<'_>],
    grants: &Grants,
) -> RolloutStep {
    let Some(wanted) = subject.wanted else {
        return RolloutStep::default();
    };
    // How a node ends that is being deleted says nothing about the change.
    let staying = assessments.iter().filter(|assessment| !assessment.is_terminating);
    let members: Vec<Member<'_>> = staying.map(Assessment::member).collect();
    if !wanted.staged {
        return rollout::all_at_once(&members);
    }
    let settings = pool.spec.rollout.staged.clone().unwrap_or_default();
    let former = || {
        let status = pool.status.as_ref();
        status.map_or_else(Former::default, |status| Former::new(status, pool.metadata.generation))
    };
    rollout::plan(&members, &settings, grants.past(&wanted.entry, former))
}
