//! The device table as a file: written by the agent before it advertises, read by the plugin.

use crate::boot::{self, BootIdError};
use crate::file::{self, Durability, FileError};
use crate::paths::Paths;
use crate::table::{DeviceTable, TableError};
use std::path::PathBuf;

/// More than 128 links with 4,096 devices need; a longer file is not ours.
const SIZE_MAX: u64 = 16 << 20;

/// The table could not be stored or loaded.
#[derive(Debug, thiserror::Error)]
pub enum TableFileError {
    /// The file system refused.
    #[error("device table")]
    File(#[from] FileError),
    /// The content is not a table.
    #[error("{}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TableError,
    },
    /// The table cannot be written as JSON.
    #[error("write the device table as JSON")]
    Json(#[source] serde_json::Error),
    /// There is no table.
    #[error("no device table at {}: the node agent has not written it yet; is it running on this node?", .0.display())]
    Missing(PathBuf),
    /// The table was written before the last reboot.
    #[error(
        "the device table at {} is of another boot: the node agent has not rewritten it yet; is it running on this node?",
        .0.display()
    )]
    OtherBoot(PathBuf),
    /// This boot is unknown.
    #[error("find out whether the device table is of this boot")]
    BootId(#[from] BootIdError),
}

/// Replaces the table. When this returns, the new one survives a power cut; on error the old one is in place.
pub fn store(paths: &Paths, table: &DeviceTable) -> Result<(), TableFileError> {
    let json = serde_json::to_vec(table).map_err(TableFileError::Json)?;
    Ok(file::replace(&paths.table(), &json, Durability::Disk)?)
}

/// The stored table of whatever boot; none when there is no file.
pub fn load(paths: &Paths) -> Result<Option<DeviceTable>, TableFileError> {
    load_as(paths, DeviceTable::parse)
}

fn load_as(
    paths: &Paths,
    parse: fn(&[u8]) -> Result<DeviceTable, TableError>,
) -> Result<Option<DeviceTable>, TableFileError> {
    let path = paths.table();
    let Some(json) = file::read(&path, SIZE_MAX)? else {
        return Ok(None);
    };
    parse(&json).map(Some).map_err(|source| TableFileError::Content { path, source })
}

/// What this program knows of the table of this boot: what may be acted on.
pub fn load_current(paths: &Paths) -> Result<DeviceTable, TableFileError> {
    let table =
        load_as(paths, DeviceTable::parse_known)?.ok_or_else(|| TableFileError::Missing(paths.table()))?;
    if table.boot_id != boot::boot_id()? {
        return Err(TableFileError::OtherBoot(paths.table()));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(boot_id: String) -> DeviceTable {
        DeviceTable { version: crate::table::VERSION, boot_id, ..DeviceTable::default() }
    }

    #[test]
    fn a_table_is_read_as_it_was_stored() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path().join("state"), dir.path().join("run"));
        assert_eq!(load(&paths).unwrap(), None);
        let table = empty(boot::boot_id().unwrap());
        store(&paths, &table).unwrap();
        assert_eq!(load_current(&paths).unwrap(), table);
    }

    #[test]
    fn a_writer_that_dies_at_any_byte_leaves_the_old_table_and_the_next_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let (old, new) = (empty("old".into()), empty("new".into()));
        let json = serde_json::to_vec(&new).unwrap();
        for written in 0..=json.len() {
            store(&paths, &old).unwrap();
            std::fs::write(file::temporary_beside(&paths.table()), &json[..written]).unwrap();
            assert_eq!(load(&paths).unwrap(), Some(old.clone()), "after {written} bytes");
            store(&paths, &new).unwrap();
            assert_eq!(load(&paths).unwrap(), Some(new.clone()), "after {written} bytes");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "after {written} bytes");
        }
    }

    #[test]
    fn a_table_that_is_missing_damaged_or_of_another_boot_is_not_acted_on() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        assert!(matches!(load_current(&paths), Err(TableFileError::Missing(_))));
        store(&paths, &empty("another".into())).unwrap();
        assert!(matches!(load_current(&paths), Err(TableFileError::OtherBoot(_))));
        std::fs::write(paths.table(), b"{\"version\":1").unwrap();
        assert!(matches!(load_current(&paths), Err(TableFileError::Content { .. })));
    }
}
