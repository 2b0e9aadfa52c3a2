//! What became of each pool's networks, for the pool's status; and who is at work on them.

use super::report::NetworkReport;
use crate::states::LOST_MAX;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex as Turn;

/// Reports by the name of their pool.
#[derive(Debug, Default)]
pub struct Reports {
    pools: Mutex<HashMap<String, PoolNetworks>>,
}

#[derive(Debug, Default)]
struct PoolNetworks {
    uid: String,
    generation: i64,
    report: Option<NetworkReport>,
    /// When a write of a network was lost last.
    lost: Option<Timestamp>,
    /// Held while the pool's networks are created or removed.
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

    /// Notes that nobody knows what became of a write of a network.
    pub fn lost(&self, pool: &str, now: Timestamp) {
        self.pools().entry(pool.to_owned()).or_default().lost = Some(now);
    }

    /// Whether a write that was lost may still make a network.
    pub fn may_come(&self, pool: &str, now: Timestamp) -> bool {
        let lost = self.pools().get(pool).and_then(|known| known.lost);
        let past = lost.map(|lost| Duration::try_from(now.duration_since(lost)).unwrap_or_default());
        past.is_some_and(|past| past < LOST_MAX)
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

    fn pools(&self) -> MutexGuard<'_, HashMap<String, PoolNetworks>> {
        // Each entry is whole at any time, also after a panic elsewhere.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_may_come_for_as_long_as_a_lost_write_can_take_effect() {
        let (reports, now) = (Reports::default(), Timestamp::UNIX_EPOCH);
        assert!(!reports.may_come("dp", now));
        reports.lost("dp", now);
        reports.withdraw("dp");
        assert!(reports.may_come("dp", now));
        assert!(!reports.may_come("dp", now + LOST_MAX));
    }

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
