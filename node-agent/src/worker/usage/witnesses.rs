//! Which devices pods have, by each witness that can be asked.

use crate::devices::assignment::GRACE;
use crate::devices::nics::NicNames;
use crate::kubelet::{Ledger, checkpoint};
use crate::pods::Listing;
use macvtap::device_id::DeviceId;
use macvtap::paths::Paths;
use macvtap::record::Attachment;
use macvtap::records;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;
use tracing::{debug, warn};

/// Records, and devices whose record cannot be read.
pub(super) type Records = (Vec<Attachment>, Vec<DeviceId>);

/// What is known before the kubelet was asked: enough never to move a device that a pod has. Notes what no record names as
/// allocated: the kubelet never lists the devices of init containers.
pub(in crate::worker) fn at_start(
    paths: &Paths,
    plugins: &Path,
    names: &NicNames,
    ledger: &Ledger,
    now: Instant,
) -> BTreeSet<DeviceId> {
    let recorded = recorded(paths).unwrap_or_default();
    let held = checkpoint::devices(plugins, names).unwrap_or_default();
    ledger.note_earlier(held.difference(&recorded).cloned(), now);
    held.into_iter().chain(recorded).collect()
}

/// What each witness said last of the devices that pods have. One that cannot be asked has taken nothing back.
#[derive(Debug, Default)]
pub(in crate::worker) struct Witnesses {
    kubelet: BTreeSet<DeviceId>,
    records: BTreeSet<DeviceId>,
}

impl Witnesses {
    /// Takes what they say now, and returns the devices that pods have. Without pod resources the kubelet's checkpoint is all
    /// that it publishes; it forgets late, never early.
    pub(in crate::worker) fn update(
        &mut self,
        listing: Option<Listing>,
        plugins: &Path,
        names: &NicNames,
        recorded: Option<BTreeSet<DeviceId>>,
    ) -> BTreeSet<DeviceId> {
        let listed = listing.map(|listing| listing.devices.into_keys().collect());
        if let Some(held) = listed.or_else(|| checkpoint::devices(plugins, names)) {
            self.kubelet = held;
        }
        if let Some(recorded) = recorded {
            self.records = recorded;
        }
        self.kubelet.union(&self.records).cloned().collect()
    }
}

/// Adds devices whose pods have been starting for long: only the kubelet's checkpoint shows that they hold them. Returns whether
/// the kubelet must write it again, since it may be behind.
pub(in crate::worker) fn starting(
    ledger: &Ledger,
    plugins: &Path,
    names: &NicNames,
    in_use: &mut BTreeSet<DeviceId>,
    now: Instant,
) -> bool {
    let is_needed = ledger.has_older(GRACE, now);
    let held = if is_needed { checkpoint::devices(plugins, names) } else { None };
    let starting = ledger.keep(GRACE, held.as_ref(), now);
    let only = starting.difference(in_use).cloned().collect();
    in_use.extend(starting);
    ledger.is_checkpoint_due(&only, now)
}

/// Returns the devices that have a record, readable or not; none when they cannot be listed.
pub(in crate::worker) fn recorded(paths: &Paths) -> Option<BTreeSet<DeviceId>> {
    let (records, damaged) = all_recorded(paths)?;
    Some(records.into_iter().map(|record| record.device).chain(damaged).collect())
}

/// Returns records, and devices whose record cannot be read; none when they cannot be listed.
pub(super) fn all_recorded(paths: &Paths) -> Option<Records> {
    match records::list(paths) {
        Ok(listing) => {
            for (device, error) in &listing.damaged {
                let reason = crate::error_chain(error);
                debug!(%device, %reason, "attachment record not readable");
            }
            Some((listing.records, listing.damaged.into_iter().map(|(device, _)| device).collect()))
        }
        Err(error) => {
            let reason = crate::error_chain(&error);
            warn!(%reason, "attachment records not readable");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::collector::tests::{listing, recorded as collected};

    #[test]
    fn a_device_of_an_init_container_is_in_use_for_as_long_as_its_pod_takes_to_start() {
        let plugins = tempfile::tempdir().unwrap();
        let write_checkpoint = |ids: &str| {
            let text = format!(
                r#"{{"Data":{{"PodDeviceEntries":[{{"PodUID":"u","ContainerName":"init",
                "ResourceName":"macvtap.network.kubevirt.io/a","DeviceIDs":{{"-1":[{ids}]}},"AllocResp":""}}]}}}}"#
            );
            std::fs::write(plugins.path().join("kubelet_internal_checkpoint"), text).unwrap();
        };
        let (ledger, device): (_, DeviceId) = (Ledger::default(), "aMvp0".parse().unwrap());
        let (allocated, later) = (Instant::now(), Instant::now() + 5 * GRACE);
        ledger.note(device.clone(), allocated);
        write_checkpoint(r#""aMvp0""#);
        let in_use = |recorded: &[&DeviceId], now: Instant| {
            let mut in_use = recorded.iter().copied().cloned().collect();
            let is_due = starting(&ledger, plugins.path(), &NicNames::default(), &mut in_use, now);
            (in_use.contains(&device), is_due)
        };
        assert_eq!(in_use(&[], allocated + GRACE / 2), (false, false), "it counts as a recent allocation");
        assert_eq!(in_use(&[&device], later), (true, false), "the record shows that it is in use");
        assert_eq!(in_use(&[], later), (true, true), "the checkpoint may be behind");
        assert_eq!(in_use(&[], later), (true, false), "it was asked for a moment ago");
        write_checkpoint("damaged");
        assert_eq!(in_use(&[], later), (true, false), "a checkpoint that cannot be read shows nothing");
        write_checkpoint("");
        assert_eq!(in_use(&[], later), (false, false));
    }

    #[test]
    fn an_agent_that_starts_takes_for_used_what_records_or_the_checkpoint_have() {
        let (run, plugins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = Paths::new(run.path(), run.path());
        let text = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"init",
            "ResourceName":"macvtap.network.kubevirt.io/a","DeviceIDs":{"-1":["aMvp0"]},"AllocResp":""}]}}"#;
        std::fs::write(plugins.path().join("kubelet_internal_checkpoint"), text).unwrap();
        records::write(&paths, &collected("aMvp1")).unwrap();
        let (ledger, now) = (Ledger::default(), Instant::now());
        let in_use = at_start(&paths, plugins.path(), &NicNames::default(), &ledger, now);
        assert_eq!(in_use.iter().map(ToString::to_string).collect::<Vec<_>>(), ["aMvp0", "aMvp1"]);
    }

    #[test]
    fn a_witness_that_cannot_be_asked_has_taken_nothing_back() {
        let (run, plugins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = Paths::new(run.path(), run.path());
        let mut witnesses = Witnesses::default();
        let mut in_use = |listed: Option<&[(&str, &str)]>| {
            let listing = listed.map(|devices| listing(devices, &[]));
            let in_use = witnesses.update(listing, plugins.path(), &NicNames::default(), recorded(&paths));
            in_use.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(in_use(None), [""; 0], "there is no directory of records before the first attachment");
        records::write(&paths, &collected("aMvp1")).unwrap();
        std::fs::write(paths.attachments().join("aMvp2"), "damaged").unwrap();
        assert_eq!(in_use(Some(&[("aMvp0", "init")])), ["aMvp0", "aMvp1", "aMvp2"]);
        assert_eq!(in_use(None), ["aMvp0", "aMvp1", "aMvp2"], "the kubelet is away, and its checkpoint lost");
        // A list that fails, as with too many open files.
        std::fs::remove_dir_all(paths.attachments()).unwrap();
        std::os::unix::fs::symlink(paths.attachments(), paths.attachments()).unwrap();
        assert_eq!(in_use(Some(&[])), ["aMvp1", "aMvp2"]);
        std::fs::remove_file(paths.attachments()).unwrap();
        assert_eq!(in_use(Some(&[])), [""; 0]);
    }
}
