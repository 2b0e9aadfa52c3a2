//! Attachments whose addresses an IPAM plugin has still to take back, as one empty file each. Without a record a DEL could
//! not tell an attachment that never leased anything from one whose plugin was missing when it was detached. Kept apart
//! from the records, so that the device itself is free.

use macvtap::file::{self, Durability, FileError};
use macvtap::paths::Paths;
use std::path::PathBuf;

/// Whether the addresses of one attachment are still to be given back.
#[derive(Debug)]
pub(crate) struct Unreturned(PathBuf);

impl Unreturned {
    /// Of this container's interface; both are judged where they are read, and are file names.
    pub(crate) fn of(paths: &Paths, container: &str, interface: &str) -> Self {
        Self(paths.unreturned().join(format!("{container}:{interface}")))
    }

    /// Whether they are.
    pub(crate) fn is_noted(&self) -> bool {
        self.0.exists()
    }

    /// Remembers that they are.
    pub(crate) fn note(&self) -> Result<(), FileError> {
        file::replace(&self.0, b"", Durability::Memory)
    }

    /// Forgets it: they were given back.
    pub(crate) fn settle(&self) -> Result<(), FileError> {
        file::remove(&self.0)
    }
}
