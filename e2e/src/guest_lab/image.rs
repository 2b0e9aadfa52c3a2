//! The root file system of the machines: an archive that the kernel unpacks into memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use cpio::newc;

use crate::process;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Writes an archive of programs, each with its place, of the libraries they need, and of modules.
pub(super) fn write(archive: &Path, programs: &[(PathBuf, &str)], modules: &[PathBuf]) -> Result<()> {
    let dir = archive.parent().context("the archive is in no directory")?;
    let stripped = dir.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("create {}", stripped.display()))?;
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut libraries = BTreeSet::new();
    for (program, place) in programs {
        libraries.extend(needed(program)?);
        let small = stripped.join(place.trim_start_matches('/').replace('/', "-"));
        // Symbols are most of a program of the debug profile.
        process::output(Command::new("strip").arg("-o").arg(&small).arg(program))?;
        files.push((small, (*place).to_owned()));
    }
    files.extend(libraries.into_iter().map(|library| (library.clone(), library.display().to_string())));
    for (number, module) in modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        files.push((module.clone(), format!("/modules/{number:02}-{name}")));
    }
    pack(archive, &files)
}

/// The libraries of a program, as the loader finds them here.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    // Static programs are told of by an error.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.lines().filter_map(|line| {
        let line = line.trim();
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        path.split(" (").next().filter(|path| path.starts_with('/'))
    });
    Ok(words.map(PathBuf::from).collect())
}

/// Writes an archive of files, each with its place.
pub(crate) fn pack(archive: &Path, files: &[(PathBuf, String)]) -> Result<()> {
    let file = File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    let mut out = BufWriter::new(file);
    let mut directories = BTreeSet::new();
    for (_, place) in files {
        let parents = Path::new(place).ancestors().skip(1).filter(|parent| parent.parent().is_some());
        directories.extend(parents.map(Path::to_owned));
    }
    // Sorted, so a directory comes before what is in it.
    for (number, directory) in directories.iter().enumerate() {
        entry(&mut out, directory, DIRECTORY, number, &[])?;
    }
    for (number, (source, place)) in files.iter().enumerate() {
        let content = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        entry(&mut out, Path::new(place), PROGRAM, directories.len() + number, &content)?;
    }
    newc::trailer(&mut out).context("end the archive")?;
    out.flush().context("write the archive")
}

fn entry(out: &mut impl Write, place: &Path, mode: u32, number: usize, content: &[u8]) -> Result<()> {
    let name = place.to_string_lossy();
    let name = name.trim_start_matches('/');
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
    // Files of the same number would be one file.
    let builder = newc::Builder::new(name).mode(mode).ino(u32::try_from(number)? + 1);
    let mut writer = builder.write(out, size);
    writer.write_all(content).and_then(|()| writer.finish()).with_context(|| format!("pack {name}"))?;
    Ok(())
}
