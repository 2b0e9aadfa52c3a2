//! Power, and the way to the API server.

use super::SimulatedNode;
use crate::worker::simulation::agent::Dies;
use crate::worker::simulation::random::Chance;
use std::path::{Path, PathBuf};

/// Tables that a disk may go back to.
const TABLES: usize = 3;

impl SimulatedNode {
    /// Keeps what is on the disk now.
    pub(super) fn note_table(&mut self) {
        let Ok(table) = std::fs::read(self.paths.table()) else { return };
        if self.tables.last() != Some(&table) {
            self.tables.push(table);
            let more = self.tables.len().saturating_sub(TABLES);
            self.tables.drain(..more);
        }
    }

    /// The power goes at any moment of a table's write. What was acknowledged is on the disk, unless the disk lied; of what was
    /// not, any part may be there.
    pub(super) fn power_lost(&mut self, chance: &mut Chance) -> String {
        let dies = [None, Some(Dies::BeforeTheTable), Some(Dies::AfterTheTable)][chance.below(3)];
        if dies.is_some() {
            self.decide(dies);
        }
        let table = self.paths.table();
        let torn = chance.percent(50);
        if torn && let Ok(text) = std::fs::read(&table) {
            let part = &text[..chance.below(text.len() + 1)];
            std::fs::write(beside(&table), part).unwrap();
        }
        let lied = chance.percent(20);
        if lied && let Some(older) = chance.pick(&self.tables) {
            std::fs::write(&table, older).unwrap();
        }
        let told = self.reboot(chance);
        format!("{dies:?}, torn {torn}, an older table {lied}; {told}")
    }

    /// What a writer of this record left that was killed before its rename, now and then.
    pub(super) fn tear_record(&self, record: &Path) {
        if self.made.is_multiple_of(2) && record.parent().is_some_and(Path::is_dir) {
            std::fs::write(beside(record), b"{\"version\":1,\"dev").unwrap();
        }
    }

    /// The way to the API server ends, or is there again.
    pub(super) fn api_fails(&mut self, chance: &mut Chance) -> String {
        self.api_away = chance.percent(50);
        self.decide(None);
        format!("{}", self.api_away)
    }
}

/// The temporary name of a file that is replaced.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}
