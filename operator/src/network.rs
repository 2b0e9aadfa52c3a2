//! Network attachment definitions of a pool.

pub mod apply;
pub mod config;
pub mod kind;
pub mod plan;
pub mod reports;

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
    pub repaired: Vec<plan::Key>,
    /// Those restored from a backup, or left by an earlier pool of the name, that are the pool's now.
    pub adopted: Vec<plan::Key>,
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
