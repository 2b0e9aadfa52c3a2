//! Puts device tables on the disk, on a thread of its own: whatever the disk does, the thread that answers the kubelet
//! goes on. The thread owns the node's lock, so no table is written after another agent has it.

use crate::process::lock::NodeLock;
use macvtap::paths::Paths;
use macvtap::table::DeviceTable;
use macvtap::table_file;
use std::sync::mpsc as blocking;
use std::thread;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// The stack is small: the thread serializes and writes.
const STACK: usize = 256 << 10;

/// What became of a table.
#[derive(Debug)]
pub(super) enum WriteOutcome {
    /// It is on the disk, and survives a power cut.
    Stored(DeviceTable),
    /// The former one is still there; why.
    Failed(String),
}

/// Writes one table at a time.
#[derive(Debug)]
pub(super) struct TableWriter {
    tables: Option<blocking::Sender<DeviceTable>>,
    written: mpsc::UnboundedReceiver<WriteOutcome>,
    ended: oneshot::Receiver<()>,
    busy_since: Option<Instant>,
}

impl TableWriter {
    /// Starts the thread, which holds `lock` until [`Self::release`] or the end of the process.
    pub(super) fn start(paths: Paths, lock: Option<NodeLock>) -> std::io::Result<Self> {
        let (tables, requests) = blocking::channel::<DeviceTable>();
        let (outcomes, written) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let work = move || {
            for table in requests {
                let outcome = match table_file::store(&paths, &table) {
                    Ok(()) => WriteOutcome::Stored(table),
                    Err(error) => WriteOutcome::Failed(crate::error_chain(&error)),
                };
                if outcomes.send(outcome).is_err() {
                    break;
                }
            }
            drop(lock);
            let _ = end.send(());
        };
        thread::Builder::new().name("table".into()).stack_size(STACK).spawn(work)?;
        Ok(Self { tables: Some(tables), written, ended, busy_since: None })
    }

    /// Begins to write a table, unless another one is being written: what is decided after that builds on it.
    pub(super) fn write(&mut self, table: &DeviceTable) {
        if let (None, Some(tables)) = (self.busy_since, &self.tables)
            && tables.send(table.clone()).is_ok()
        {
            self.busy_since = Some(Instant::now());
        }
    }

    /// Since when a table is being written.
    pub(super) fn busy_since(&self) -> Option<Instant> {
        self.busy_since
    }

    /// Waits for what became of the table that is being written.
    pub(super) async fn written(&mut self) -> WriteOutcome {
        match self.written.recv().await {
            Some(written) => {
                self.busy_since = None;
                written
            }
            // Only while the process ends.
            None => std::future::pending().await,
        }
    }

    /// Waits until what is being written is written, and releases the node's lock.
    pub(super) async fn release(&mut self) {
        self.tables = None;
        let _ = (&mut self.ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl TableWriter {
        /// A writer whose disk does not answer, and the tables that wait for it.
        pub(in crate::worker) fn stuck() -> (Self, blocking::Receiver<DeviceTable>) {
            let (tables, waiting) = blocking::channel();
            let (_, written) = mpsc::unbounded_channel();
            let (end, ended) = oneshot::channel();
            // Never notified, not even by being dropped.
            Box::leak(Box::new(end));
            (Self { tables: Some(tables), written, ended, busy_since: None }, waiting)
        }
    }

    #[tokio::test]
    async fn the_nodes_lock_is_free_when_what_was_being_written_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        let lock = crate::process::lock::try_take(dir.path()).unwrap();
        let mut writer = TableWriter::start(paths.clone(), lock).unwrap();
        let table = crate::devices::assignment::empty("boot", true);
        writer.write(&table);
        assert!(crate::process::lock::try_take(dir.path()).unwrap().is_none());
        writer.release().await;
        assert_eq!(table_file::load(&paths).unwrap(), Some(table));
        assert!(crate::process::lock::try_take(dir.path()).unwrap().is_some());
    }
}
