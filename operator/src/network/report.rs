//! What became of a pool's networks.

use super::kind::NetworkKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use macvtap_crds::condition::ConditionType;
use macvtap_crds::v1alpha1::MacvtapResourcePoolStatus;
use macvtap_crds::v1alpha1::reason::PoolReason;

/// What became of a pool's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkReport {
    /// How many there should be.
    pub desired: usize,
    /// How many are there as they should be.
    pub ready: usize,
    /// What is wrong, the first being the most important.
    pub problems: Vec<Problem>,
    /// Those that somebody had changed, and that are as they should be again.
    pub repaired: Vec<NetworkKey>,
    /// Those restored from a backup, or left by an earlier pool of the name, that are the pool's now.
    pub adopted: Vec<NetworkKey>,
    /// Those restored from a backup for an earlier pool of the name, which the pool does not want.
    pub restored: Vec<NetworkKey>,
}

/// Something that is wrong with a pool's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word.
    pub reason: PoolReason,
    /// For people.
    pub message: String,
}

impl NetworkReport {
    /// What a status says of the networks of this generation, until a new leader has compared them itself.
    pub fn former(status: &MacvtapResourcePoolStatus, generation: Option<i64>) -> Option<Self> {
        let is_current = |condition: &&Condition| {
            condition.type_ == ConditionType::NetworksReady.as_str()
                && condition.observed_generation == generation
        };
        let condition = status.conditions.iter().find(is_current)?;
        let reason = PoolReason::ALL.iter().copied().find(|reason| reason.as_str() == condition.reason)?;
        let problems = match reason {
            PoolReason::AllNetworksReady
            | PoolReason::NetworksUpdating
            | PoolReason::NoNetworks
            | PoolReason::DryRun => Vec::new(),
            PoolReason::NADConflict
            | PoolReason::NADKindMissing
            | PoolReason::NamespaceNotFound
            | PoolReason::NetworkNameNotUsable
            | PoolReason::NetworkWriteFailed => {
                vec![Problem { reason, message: condition.message.clone() }]
            }
            // The rest says nothing of networks.
            _ => return None,
        };
        let [desired, ready] = [status.networks.desired, status.networks.ready]
            .map(|count| usize::try_from(count).unwrap_or_default());
        Some(Self { desired, ready, problems, ..Self::default() })
    }

    /// Whether trying again without any event may help.
    pub fn retry(&self) -> bool {
        self.problems.iter().any(|problem| {
            matches!(
                problem.reason,
                PoolReason::NADConflict | PoolReason::NADKindMissing | PoolReason::NetworkWriteFailed
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use macvtap_crds::v1alpha1::pool::NetworkCounts;

    #[test]
    fn a_new_leader_repeats_what_was_said_of_networks_until_it_has_compared_them() {
        let status = |reason: PoolReason, generation| MacvtapResourcePoolStatus {
            conditions: vec![Condition {
                type_: ConditionType::NetworksReady.to_string(),
                status: "False".to_owned(),
                reason: reason.to_string(),
                message: "m".to_owned(),
                observed_generation: Some(generation),
                last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
            }],
            networks: NetworkCounts { desired: 3, ready: 2 },
            ..Default::default()
        };
        let former = |reason, generation| NetworkReport::former(&status(reason, generation), Some(2));
        let counts = NetworkReport { desired: 3, ready: 2, ..NetworkReport::default() };
        assert_eq!(former(PoolReason::NetworksUpdating, 2), Some(counts.clone()));
        let problem = Problem { reason: PoolReason::NADConflict, message: "m".to_owned() };
        let conflict = NetworkReport { problems: vec![problem], ..counts };
        assert_eq!(former(PoolReason::NADConflict, 2), Some(conflict));
        assert_eq!(former(PoolReason::NADConflict, 1), None, "of an earlier generation");
        assert_eq!(former(PoolReason::NotAccepted, 2), None);
    }
}
