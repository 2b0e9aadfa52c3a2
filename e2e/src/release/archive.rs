//! Archives that are the same bytes for the same files.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::images;

/// A tar archive of these files: name, mode, content.
pub(super) fn files(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        images::append(&mut tar, name, tar::EntryType::Regular, *mode, content, None)?;
    }
    tar.into_inner().context("finish the archive")
}

/// A tar archive of a directory, under another name.
pub(super) fn directory(source: &Path, name: &str) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    images::add(&mut tar, source, name)?;
    tar.into_inner().context("finish the archive")
}

/// Compresses, without a name and a time.
pub(super) fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).context("compress")?;
    encoder.finish().context("compress")
}
