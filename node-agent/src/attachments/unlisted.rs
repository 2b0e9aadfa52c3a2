//! Attached devices that the kubelet does not list, and which of them were reported.

use super::witness::PATIENCE;
use macvtap::device_id::DeviceId;
use macvtap::record::Holder;
use std::collections::BTreeMap;
use std::time::Instant;

/// Since when the kubelet has not listed each attached device, and whether that was reported.
#[derive(Debug, Default)]
pub(crate) struct Unlisted(BTreeMap<DeviceId, (Instant, bool)>);

impl Unlisted {
    /// Returns the devices to report now: each once, after [`PATIENCE`]. A pod that ends is not listed for a moment.
    pub(crate) fn update(
        &mut self,
        unlisted: BTreeMap<DeviceId, Holder>,
        now: Instant,
    ) -> Vec<(DeviceId, Holder)> {
        let mut before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for (device, holder) in unlisted {
            let (since, is_reported) = before.remove(&device).unwrap_or((now, false));
            let is_due = now.saturating_duration_since(since) >= PATIENCE;
            self.0.insert(device.clone(), (since, is_reported || is_due));
            if is_due && !is_reported {
                due.push((device, holder));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_device_is_reported_once_when_it_was_not_listed_for_long_enough_however_often_that_was_seen() {
        let (mut unlisted, start) = (Unlisted::default(), Instant::now());
        let mut due = |second: u64, devices: &[&str]| {
            let devices = devices.iter().map(|device| (device.parse().unwrap(), Holder::Host)).collect();
            unlisted.update(devices, start + Duration::from_secs(second)).len()
        };
        for second in [0, 2, 4, 8] {
            assert_eq!(due(second, &["aMvp0"]), 0, "after {second} s");
        }
        assert_eq!(due(11, &["aMvp0", "aMvp1"]), 1);
        assert_eq!(due(13, &["aMvp0", "aMvp1"]), 0);
        // It was listed in between.
        assert_eq!(due(15, &["aMvp0"]), 0);
        assert_eq!(due(22, &["aMvp0", "aMvp1"]), 0);
        assert_eq!(due(32, &["aMvp0", "aMvp1"]), 1);
    }
}
