//! What became of each pool's networks, for the pool's status; and who is at work on them.

use super::NetworkReport;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Mutex as Turn;

/// Reports by the name of their pool.
#[derive(Debug, Default)]
pub struct Reports {
    pools: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    uid: String,
    generation: i64,
    report: Option<NetworkReport>,
    /// Held by whoever makes or removes the pool's networks.
    turn: Arc<Turn<()>>,
}

impl Reports {
    /// The report on this generation of the pool, once there is one.
    pub fn of(&self, pool: &str, uid: &str, generation: i64) -> Option<NetworkReport> {
        let pools = self.pools();
        let known = pools.get(pool).filter(|known| known.uid == uid && known.generation == generation)?;
        known.report.clone()
    }

    /// Notes a report; says whether it is another one than before.
    pub fn set(&self, pool: &str, uid: &str, generation: i64, report: NetworkReport) -> bool {
        let mut pools = self.pools();
        let known = pools.entry(pool.to_owned()).or_default();
        let is_new =
            known.uid != uid || known.generation != generation || known.report.as_ref() != Some(&report);
        uid.clone_into(&mut known.uid);
        known.generation = generation;
        known.report = Some(report);
        is_new
    }

    /// Notes that nothing is known of the pool's networks any more.
    pub fn withdraw(&self, pool: &str) {
        if let Some(known) = self.pools().get_mut(pool) {
            known.report = None;
        }
    }

    /// The lock that is held while the pool's networks are made or removed.
    pub fn turn(&self, pool: &str) -> Arc<Turn<()>> {
        Arc::clone(&self.pools().entry(pool.to_owned()).or_default().turn)
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, pool: &str) {
        self.pools().remove(pool);
    }

    /// Forgets everything: another operator writes now.
    pub fn forget_all(&self) {
        self.pools().clear();
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // Each entry is whole at any time, also after a panic elsewhere.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_is_accepted_again_has_no_report_until_somebody_compared_its_networks() {
        let reports = Reports::default();
        let report = NetworkReport { desired: 1, ready: 1, ..NetworkReport::default() };
        assert!(reports.set("dp", "u", 1, report.clone()));
        assert_eq!(reports.of("dp", "u", 1), Some(report.clone()));
        reports.withdraw("dp");
        assert_eq!(reports.of("dp", "u", 1), None);
        assert!(reports.set("dp", "u", 1, report), "the status must hear of it again");
    }
}
