//! Statuses of pools as the operator wrote them last: while the watch is late it shows older ones, and to judge by those
//! would repeat writes and events.

use crate::states::version;
use kube::ResourceExt;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, MacvtapResourcePoolStatus};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Written statuses by the name of their pool.
#[derive(Debug, Default)]
pub struct Published {
    written: Mutex<HashMap<String, Written>>,
}

#[derive(Debug)]
struct Written {
    uid: Option<String>,
    version: u64,
    status: MacvtapResourcePoolStatus,
}

impl Published {
    /// Notes the status that the pool has in this version.
    pub fn note(&self, pool: &MacvtapResourcePool, version: u64, status: MacvtapResourcePoolStatus) {
        self.written().insert(pool.name_any(), Written { uid: pool.uid(), version, status });
    }

    /// The pool with the status that was written last, if the watch does not show that yet.
    pub fn newest<'p>(&self, pool: &'p MacvtapResourcePool) -> Cow<'p, MacvtapResourcePool> {
        let (mut written, name) = (self.written(), pool.name_any());
        match written.get(&name) {
            Some(ours) if ours.uid == pool.uid() && version(&pool.metadata) < ours.version => {
                Cow::Owned(MacvtapResourcePool { status: Some(ours.status.clone()), ..pool.clone() })
            }
            Some(_) => {
                written.remove(&name);
                Cow::Borrowed(pool)
            }
            None => Cow::Borrowed(pool),
        }
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, pool: &str) {
        self.written().remove(pool);
    }

    /// Forgets everything: another operator writes now.
    pub fn forget_all(&self) {
        self.written().clear();
    }

    fn written(&self) -> MutexGuard<'_, HashMap<String, Written>> {
        // Each entry is whole at any time, also after a panic elsewhere.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;
    use serde_json::json;

    #[test]
    fn a_status_counts_as_written_until_the_watch_shows_it_or_another_pool_of_its_name() {
        let published = Published::default();
        let mut seen = pool("dp", json!({}));
        let at = |pool: &mut MacvtapResourcePool, version: &str| {
            pool.metadata.resource_version = Some(version.into());
        };
        at(&mut seen, "5");
        let status = MacvtapResourcePoolStatus { observed_generation: Some(1), ..Default::default() };
        published.note(&seen, 7, status.clone());
        assert_eq!(published.newest(&seen).status, Some(status.clone()));
        let mut successor = seen.clone();
        successor.metadata.uid = Some("another".to_owned());
        assert_eq!(published.newest(&successor).status, None);
        published.note(&seen, 7, status);
        at(&mut seen, "8");
        assert_eq!(published.newest(&seen).status, None, "somebody wiped it");
    }
}
