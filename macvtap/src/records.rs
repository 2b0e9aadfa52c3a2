//! Attachment records as files: one per device in [`Paths::attachments`], named by device ID.
//!
//! Who writes or removes one holds the lock of its device; reading needs no lock, since files are replaced whole.
//!
//! Beside them, in [`Paths::taps`], a symbolic link per tap number names the device whose record has that number: a new
//! link's number is looked up with every ADD, and must not cost reading every record. The link is made before the record
//! has the number, so a record with a number is always found. One that no record confirms counts as absent; a record without
//! a number that is being made confirms any, since its maker writes the number last.

use crate::device_id::DeviceId;
use crate::file::{self, Durability, FileError};
use crate::lock;
use crate::paths::Paths;
use crate::record::{self, Attachment, DeviceNumber, State};
use crate::tap_pods;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Far above what a record with the longest names takes.
const SIZE_MAX: u64 = 64 << 10;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("attachment record")]
    File(#[from] FileError),
    /// The content is not a record.
    #[error("attachment record {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The content is a record of something else.
    #[error("attachment record {} is damaged: it {what}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says, as the rest of a sentence.
        what: String,
    },
    /// The record cannot be written as JSON.
    #[error("write an attachment record as JSON")]
    Json(#[source] serde_json::Error),
}

/// Everything in the directory of records.
#[derive(Debug, Default)]
pub struct Listing {
    /// Readable records, ordered by device.
    pub records: Vec<Attachment>,
    /// Files that bear a device's name and are not records, with the reason.
    pub damaged: Vec<(DeviceId, RecordError)>,
}

/// Replaces the record of its device. The caller holds the device's lock, and has reserved the tap number if the record has
/// one.
pub fn write(paths: &Paths, record: &Attachment) -> Result<(), RecordError> {
    let json = serde_json::to_vec(record).map_err(RecordError::Json)?;
    let path = path(paths, &record.device);
    if json.len() as u64 > SIZE_MAX {
        // Nobody could read it, and so nobody undo what it stands for.
        let too_long = io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {SIZE_MAX} bytes"));
        return Err(file::failed("write", &path)(too_long).into());
    }
    Ok(file::replace(&path, &json, Durability::Memory)?)
}

/// The record that has this tap number, or whose maker may have it, whether its link still exists or not.
pub fn with_tap(paths: &Paths, tap: DeviceNumber) -> Result<Option<Attachment>, RecordError> {
    let entry = paths.tap(tap);
    let target = match std::fs::read_link(&entry) {
        Ok(target) => target,
        // `InvalidInput`: it is not a link.
        Err(error) if file::is_absent(&error) || error.kind() == io::ErrorKind::InvalidInput => {
            return Ok(None);
        }
        Err(error) => return Err(file::failed("read", &entry)(error).into()),
    };
    let Some(device) = target.to_str().and_then(|name| name.parse().ok()) else {
        return Ok(None);
    };
    let confirms = |record: &Attachment| match record.tap {
        Some(own) => own == tap,
        None => record.state == State::Creating && record.nic.is_none(),
    };
    Ok(read(paths, &device)?.filter(confirms))
}

/// Releases the tap number of a record whose containers are dead: a new link may get it. The caller holds the device's
/// lock and is about to remove link and record.
pub fn release_tap(paths: &Paths, record: &Attachment) -> Result<(), RecordError> {
    let Some(tap) = record.tap else { return Ok(()) };
    let entry = paths.tap(tap);
    let ours =
        std::fs::read_link(&entry).is_ok_and(|target| target.to_str() == Some(&record.device.to_string()));
    if ours { Ok(file::remove(&entry)?) } else { Ok(()) }
}

/// Removes the entries of tap numbers that no record confirms, which killed processes leave. The caller holds the
/// node-wide lock, under which entries are made.
pub(crate) fn sweep_taps(paths: &Paths) -> Result<(), RecordError> {
    let directory = paths.taps();
    let failed = |source| FileError { step: "list", path: paths.taps(), source };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if file::is_absent(&error) => return Ok(()),
        Err(error) => return Err(failed(error).into()),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // A record that cannot be read might confirm its entry.
        if number.is_none_or(|number| matches!(with_tap(paths, number), Ok(None))) {
            file::remove_one(&entry.path())?;
        }
    }
    Ok(())
}

/// Reserves a tap number for a device, unless another device's record has it. Returns whether it did. The caller holds the
/// node-wide lock.
pub fn reserve_tap(paths: &Paths, tap: DeviceNumber, device: &DeviceId) -> Result<bool, FileError> {
    let entry = paths.tap(tap);
    let target = device.to_string();
    let link_at = |path: &Path| symlink(&target, path).map_err(file::failed("create", path));
    match file::within(&paths.taps(), || link_at(&entry)) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map(|()| true),
    }
    if std::fs::read_link(&entry).is_ok_and(|found| found.to_str() == Some(&target)) {
        return Ok(true);
    }
    // A record that cannot be read might have it.
    if !matches!(with_tap(paths, tap), Ok(None)) {
        return Ok(false);
    }
    let temporary = file::temporary_beside(&entry);
    file::remove_one(&temporary)?;
    link_at(&temporary)?;
    file::rename(&temporary, &entry)?;
    Ok(true)
}

/// The record of a device; none when it is free.
pub fn read(paths: &Paths, device: &DeviceId) -> Result<Option<Attachment>, RecordError> {
    let path = path(paths, device);
    let json = match file::read(&path, SIZE_MAX) {
        // As if it were lost: the next record is written in its place.
        Err(error) if error.is_not_a_file() => None,
        read => read?,
    };
    let Some(json) = json else { return Ok(None) };
    let record: Attachment = match serde_json::from_slice(&json) {
        Ok(record) => record,
        Err(source) => return Err(RecordError::Damaged { path, source }),
    };
    if record.version != record::VERSION {
        let what = format!("has version {}, this program reads {}", record.version, record::VERSION);
        return Err(RecordError::Foreign { path, what });
    }
    if record.device != *device {
        let what = format!("names device {}", record.device);
        return Err(RecordError::Foreign { path, what });
    }
    Ok(Some(record))
}

/// Forgets an attachment; succeeds when there is none. The caller holds the device's lock.
pub fn remove(paths: &Paths, record: &Attachment) -> Result<(), RecordError> {
    release_tap(paths, record)?;
    tap_pods::forget(paths, &record.device)?;
    Ok(file::remove(&path(paths, &record.device))?)
}

/// All records, readable or not. Names that are not device IDs (temporary files among them) are skipped.
pub fn list(paths: &Paths) -> Result<Listing, RecordError> {
    let directory = paths.attachments();
    let failed = |source| FileError { step: "list", path: paths.attachments(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if file::is_absent(&error) => return Ok(Listing::default()),
        Err(error) => return Err(failed(error).into()),
    };
    let mut devices = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        devices.extend(name.to_str().and_then(|name| name.parse::<DeviceId>().ok()));
    }
    devices.sort();
    let mut listing = Listing::default();
    for device in devices {
        match read(paths, &device) {
            Ok(record) => listing.records.extend(record),
            Err(error) => listing.damaged.push((device, error)),
        }
    }
    Ok(listing)
}

/// Removes what writers of records left that were killed before they had written one. A device at which somebody works
/// is left out.
pub(crate) fn sweep_unfinished(paths: &Paths) -> Result<(), RecordError> {
    let failed = |source| FileError { step: "list", path: paths.attachments(), source };
    let entries = match std::fs::read_dir(paths.attachments()) {
        Ok(entries) => entries,
        Err(error) if file::is_absent(&error) => return Ok(()),
        Err(error) => return Err(failed(error).into()),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let device =
            name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".new")?.parse().ok());
        if let Some(device) = device
            && let Ok(Some(_lock)) = lock::try_device(paths, &device)
        {
            file::remove_one(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes what a writer of this device's record left that was killed before it had written one. The caller holds the
/// device's lock.
pub(crate) fn remove_unfinished(paths: &Paths, device: &DeviceId) -> Result<(), RecordError> {
    Ok(file::remove_one(&file::temporary_beside(&path(paths, device)))?)
}

fn path(paths: &Paths, device: &DeviceId) -> PathBuf {
    paths.attachments().join(device.to_string())
}

/// Whether this is what is recorded, and nobody works on the device. Who looked at a link first and at this then knows that
/// the link was not just being removed.
pub fn stands(paths: &Paths, record: &Attachment) -> bool {
    let Ok(Some(_lock)) = lock::try_device(paths, &record.device) else { return false };
    matches!(read(paths, &record.device), Ok(Some(current)) if current == *record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Holder, State};

    fn record(device: &str) -> Attachment {
        Attachment {
            version: record::VERSION,
            device: device.parse().unwrap(),
            holder: Holder::Host,
            state: State::Creating,
            ifindex: 0x0100_0000,
            lower_ifindex: 3,
            mac: None,
            tap: None,
            netns_id: None,
            network: None,
            nic: None,
            made: None,
            kubelet: None,
        }
    }

    #[test]
    fn what_a_killed_writer_left_is_swept_unless_somebody_works_on_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        file::make_directory(&paths.attachments()).unwrap();
        let unfinished = |device: &str| paths.attachments().join(format!(".{device}.new"));
        for device in ["dataplaneMvp0", "dataplaneMvp1"] {
            std::fs::write(unfinished(device), "{").unwrap();
        }
        let held = lock::device(&paths, &"dataplaneMvp1".parse().unwrap()).unwrap();
        sweep_unfinished(&paths).unwrap();
        assert!(!unfinished("dataplaneMvp0").exists() && unfinished("dataplaneMvp1").exists());
        remove_unfinished(&paths, &"dataplaneMvp1".parse().unwrap()).unwrap();
        drop(held);
        assert!(!unfinished("dataplaneMvp1").exists());
    }

    #[test]
    fn a_record_is_read_as_it_was_written_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let record = record("aMvp0");
        assert_eq!(read(&paths, &record.device).unwrap(), None);
        write(&paths, &record).unwrap();
        assert_eq!(read(&paths, &record.device).unwrap(), Some(record.clone()));
        remove(&paths, &record).unwrap();
        remove(&paths, &record).unwrap();
        assert_eq!(read(&paths, &record.device).unwrap(), None);
    }

    #[test]
    fn a_record_stands_while_it_is_as_it_was_read_and_nobody_works_on_its_device() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let record = record("aMvp0");
        assert!(!stands(&paths, &record));
        write(&paths, &record).unwrap();
        assert!(stands(&paths, &record));
        let held = lock::device(&paths, &record.device).unwrap();
        assert!(!stands(&paths, &record));
        drop(held);
        write(&paths, &Attachment { state: State::Attached, ..record.clone() }).unwrap();
        assert!(!stands(&paths, &record));
    }

    #[test]
    fn a_listing_tells_records_from_damaged_ones_and_skips_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        assert!(list(&paths).unwrap().records.is_empty());
        for device in ["bMvp0", "aMvp1", "aMvp0"] {
            write(&paths, &record(device)).unwrap();
        }
        let attachments = paths.attachments();
        std::fs::write(attachments.join("cMvp0"), b"{").unwrap();
        std::fs::copy(attachments.join("aMvp0"), attachments.join("dMvp0")).unwrap();
        std::fs::write(attachments.join(".aMvp0.17"), b"{").unwrap();
        std::fs::write(attachments.join("README"), b"").unwrap();
        let listing = list(&paths).unwrap();
        let names = listing.records.iter().map(|r| r.device.to_string()).collect::<Vec<_>>();
        assert_eq!(names, ["aMvp0", "aMvp1", "bMvp0"]);
        let damaged = listing.damaged.iter().map(|(d, _)| d.to_string()).collect::<Vec<_>>();
        assert_eq!(damaged, ["cMvp0", "dMvp0"]);
    }

    #[test]
    fn a_tap_number_leads_to_its_record_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let tap = DeviceNumber { major: 246, minor: 5 };
        let with = |device: &str| Attachment { tap: Some(tap), ..record(device) };
        let [a, b] = [with("aMvp0"), with("bMvp0")];
        assert_eq!(with_tap(&paths, tap).unwrap(), None);
        assert!(reserve_tap(&paths, tap, &a.device).unwrap());
        assert_eq!(with_tap(&paths, tap).unwrap(), None, "no record");
        let making = Attachment { state: State::Creating, ..record("aMvp0") };
        write(&paths, &making).unwrap();
        assert_eq!(
            with_tap(&paths, tap).unwrap(),
            Some(making),
            "its maker may be about to write the number"
        );
        assert!(!reserve_tap(&paths, tap, &b.device).unwrap());
        write(&paths, &a).unwrap();
        assert_eq!(with_tap(&paths, tap).unwrap(), Some(a.clone()));
        assert!(!reserve_tap(&paths, tap, &b.device).unwrap());
        assert!(reserve_tap(&paths, tap, &a.device).unwrap(), "its own");
        // An entry whose record has another number by now means nothing.
        write(&paths, &Attachment { tap: Some(DeviceNumber { minor: 6, ..tap }), ..a.clone() }).unwrap();
        assert_eq!(with_tap(&paths, tap).unwrap(), None);
        assert!(reserve_tap(&paths, tap, &b.device).unwrap());
        write(&paths, &b).unwrap();
        release_tap(&paths, &a).unwrap();
        assert_eq!(with_tap(&paths, tap).unwrap(), Some(b.clone()), "another's number was released");
        remove(&paths, &b).unwrap();
        assert_eq!(with_tap(&paths, tap).unwrap(), None);
        assert_eq!(std::fs::read_dir(paths.taps()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_in_place_of_a_record_or_a_tap_number_is_none_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let tap = DeviceNumber { major: 246, minor: 5 };
        let record = Attachment { tap: Some(tap), ..record("aMvp0") };
        file::make_directory(&super::path(&paths, &record.device)).unwrap();
        file::make_directory(&paths.tap(tap)).unwrap();
        assert_eq!((read(&paths, &record.device).unwrap(), with_tap(&paths, tap).unwrap()), (None, None));
        assert!(reserve_tap(&paths, tap, &record.device).unwrap());
        write(&paths, &record).unwrap();
        assert_eq!(with_tap(&paths, tap).unwrap(), Some(record));
    }

    #[test]
    fn a_record_that_nobody_could_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let former = record("aMvp0");
        write(&paths, &former).unwrap();
        let name = "x".repeat(usize::try_from(SIZE_MAX).unwrap());
        write(&paths, &Attachment { network: Some(name), ..former.clone() }).unwrap_err();
        assert_eq!(read(&paths, &former.device).unwrap(), Some(former));
    }

    #[test]
    fn a_record_of_another_version_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let record = Attachment { version: 2, ..record("aMvp0") };
        write(&paths, &record).unwrap();
        assert!(matches!(read(&paths, &record.device), Err(RecordError::Foreign { .. })));
    }
}
