//! Which boot of the machine this is: links, indexes and device numbers of another boot mean nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

/// The file in which the kernel publishes it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A UUID and a line end are 37 bytes.
const LENGTH_MAX: usize = 64;

/// The boot ID could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read the boot ID from {}", path.display())]
pub struct BootIdError {
    /// The file.
    pub path: PathBuf,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

/// The ID of the running boot, as the kernel prints it (a UUID, no line end).
pub fn boot_id() -> Result<String, BootIdError> {
    // One read gets all of it.
    let mut text = String::with_capacity(LENGTH_MAX);
    let read = File::open(BOOT_ID).and_then(|file| file.take(LENGTH_MAX as u64).read_to_string(&mut text));
    read.map_err(|source| BootIdError { path: BOOT_ID.into(), source })?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_id_is_the_same_within_a_boot() {
        let id = super::boot_id().unwrap();
        assert_eq!(id.len(), 36, "{id:?}");
        assert_eq!(id, super::boot_id().unwrap());
    }
}
