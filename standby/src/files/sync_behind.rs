//! Syncing what is written while more of it comes, so that little is left at the end.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// So much is written between two syncs.
const SYNC_BYTES: u64 = 128 << 20;

/// Syncs beside those who write. Nothing is durable because of it: who needs that syncs at the end, and
/// waits less.
pub(super) struct SyncBehind {
    sync: fn(&File) -> io::Result<()>,
    unsynced: u64,
    syncing: Option<(SyncSender<File>, JoinHandle<io::Result<()>>)>,
}

impl SyncBehind {
    /// Syncs the files that are written.
    pub(super) fn of_files() -> Self {
        Self::new(File::sync_data)
    }

    /// Syncs the file systems of the files that are named.
    pub(super) fn of_file_systems() -> Self {
        Self::new(|file| Ok(rustix::fs::syncfs(file)?))
    }

    fn new(sync: fn(&File) -> io::Result<()>) -> Self {
        Self {
            sync,
            unsynced: 0,
            syncing: None,
        }
    }

    /// Notes that so many bytes were written, and has them synced when they are many.
    pub(super) fn wrote(&mut self, file: &File, bytes: u64) -> io::Result<()> {
        self.unsynced = self.unsynced.saturating_add(bytes);
        if self.unsynced < SYNC_BYTES {
            return Ok(());
        }
        self.unsynced = 0;
        let (sender, _) = match &self.syncing {
            Some(syncing) => syncing,
            None => {
                let (sender, files) = sync_channel::<File>(1);
                let sync = self.sync;
                let thread = thread::Builder::new()
                    .name("files-sync".to_owned())
                    .spawn(move || files.into_iter().try_for_each(|file| sync(&file)))?;
                self.syncing.insert((sender, thread))
            }
        };
        // One that waits already covers this, too; one that has failed is told at the end.
        let _taken = sender.try_send(file.try_clone()?).is_ok();
        Ok(())
    }

    /// Waits for what is under way, and tells whether all of it went well.
    pub(super) fn finish(self) -> io::Result<()> {
        let Some((sender, thread)) = self.syncing else {
            return Ok(());
        };
        drop(sender);
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("syncing broke off")))
    }
}
