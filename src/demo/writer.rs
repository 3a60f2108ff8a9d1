//! The application of the demo: keeps changing all that the appliance holds, and remembers when each
//! write was finished.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::Client;
use understudy_replication::wall_time::WallTime;

use super::appliance::{Appliance, DOCS, SETTINGS_FILE, beneath, connect};
use super::machine::Machines;
use crate::failure::Failure;

/// How many files the writer keeps rewriting.
const FILES: u32 = 20;

/// The key that holds the number of the last write.
pub(super) const LAST_KEY: &str = "last";

/// A finished write, and when it was finished.
#[derive(Clone, Debug)]
pub(super) struct Done<T> {
    pub(super) what: T,
    pub(super) at: WallTime,
}

/// A write to a file.
#[derive(Clone, Debug)]
pub(super) enum FileWrite {
    /// The file says that it is of at least this generation.
    Written { name: String, generation: u32 },
    /// The file is gone, and will not come back.
    Deleted { name: String },
}

/// Everything that was written, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    pub(super) changes: Vec<Done<i32>>,
    pub(super) files: Vec<Done<FileWrite>>,
    pub(super) settings: Vec<Done<u32>>,
    pub(super) keys: Vec<Done<u32>>,
}

/// The writer.
pub(super) struct Writer {
    written: Arc<Mutex<Written>>,
    is_stopped: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writer {
    /// Starts writing to node a.
    pub(super) async fn start(machines: &Machines, appliance: &Appliance) -> Result<Self, Failure> {
        let written = Arc::new(Mutex::new(Written::default()));
        let is_stopped = Arc::new(AtomicBool::new(false));
        let client = connect(machines, "a", "catalog").await?;
        let names: Vec<String> = (0..50)
            .map(|number| appliance.package(number).to_owned())
            .collect();
        let notes = beneath(&machines.root("a"), DOCS).join("notes");
        fs::create_dir_all(&notes)?;
        let settings = beneath(&machines.root("a"), SETTINGS_FILE);
        let (rows, files, confs) = (written.clone(), written.clone(), written.clone());
        let keys = TcpStream::connect(machines.kv("a")).await?;
        let (stop_files, stop_settings) = (is_stopped.clone(), is_stopped.clone());
        let tasks = vec![
            tokio::spawn(write_rows(client, names, rows)),
            tokio::spawn(write_keys(keys, written.clone())),
            tokio::task::spawn_blocking(move || write_files(&notes, &files, &stop_files)),
            tokio::task::spawn_blocking(move || write_settings(&settings, &confs, &stop_settings)),
        ];
        Ok(Self {
            written,
            is_stopped,
            tasks,
        })
    }

    /// Stops writing, and returns what was written.
    pub(super) async fn stop(self) -> Written {
        self.is_stopped.store(true, Ordering::SeqCst);
        for task in self.tasks {
            // The database is dead by now, which has ended its task.
            if tokio::time::timeout(Duration::from_secs(5), task)
                .await
                .is_err()
            {
                tracing::warn!("a writer did not stop");
            }
        }
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Remembers a write that has just been finished.
fn done<T>(
    written: &Mutex<Written>,
    list: impl FnOnce(&mut Written) -> &mut Vec<Done<T>>,
    what: T,
) {
    let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
    let at = WallTime::now();
    list(&mut written).push(Done { what, at });
}

/// Commits changes until the server is killed.
async fn write_rows(client: Client, names: Vec<String>, written: Arc<Mutex<Written>>) {
    for number in 1_i32.. {
        let name = names
            .get(number.unsigned_abs() as usize % names.len())
            .cloned();
        let name = name.unwrap_or_default();
        let update = "WITH changed AS (INSERT INTO change (number) VALUES ($1)) \
            UPDATE package SET generation = $1, changed = now() WHERE name = $2";
        if client.execute(update, &[&number, &name]).await.is_err() {
            return;
        }
        done(&written, |written| &mut written.changes, number);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sets keys until the store is gone, as a client of Redis would.
async fn write_keys(mut store: TcpStream, written: Arc<Mutex<Written>>) {
    for number in 1_u32.. {
        let commands = format!(
            "SET visitor:{} {number}\r\nSET {LAST_KEY} {number}\r\n",
            number % 1000
        );
        let mut answers = [0; 10];
        let asked = async {
            store.write_all(commands.as_bytes()).await?;
            store.read_exact(&mut answers).await
        };
        // What is not answered in this way is not known to be kept.
        if asked.await.is_err() || &answers != b"+OK\r\n+OK\r\n" {
            return;
        }
        done(&written, |written| &mut written.keys, number);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Replaces, extends, renames and deletes files.
fn write_files(folder: &Path, written: &Mutex<Written>, is_stopped: &AtomicBool) {
    for generation in 1_u32.. {
        if is_stopped.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = write_generation(folder, generation, written) {
            tracing::warn!(%error, "the writer of files failed");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn write_generation(
    folder: &Path,
    generation: u32,
    written: &Mutex<Written>,
) -> std::io::Result<()> {
    let name = format!("note-{}", generation % FILES);
    let text = format!("generation {generation}\n{}", "lorem ipsum ".repeat(200));
    if generation.is_multiple_of(2) {
        // As careful applications do: a new file in place of the old one.
        let temporary = folder.join(format!("{name}.tmp"));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, folder.join(&name))?;
    } else {
        fs::write(folder.join(&name), text)?;
    }
    let write = FileWrite::Written { name, generation };
    done(written, |written| &mut written.files, write);
    if generation.is_multiple_of(10) {
        let (draft, kept) = (format!("draft-{generation}"), format!("kept-{generation}"));
        fs::write(folder.join(&draft), format!("generation {generation}\n"))?;
        fs::rename(folder.join(&draft), folder.join(&kept))?;
        let write = FileWrite::Written {
            name: kept,
            generation,
        };
        done(written, |written| &mut written.files, write);
        done(
            written,
            |written| &mut written.files,
            FileWrite::Deleted { name: draft },
        );
    }
    let mut journal = fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("journal"))?;
    writeln!(journal, "generation {generation}")?;
    Ok(())
}

/// Changes a setting twice a second.
fn write_settings(file: &PathBuf, written: &Mutex<Written>, is_stopped: &AtomicBool) {
    for generation in 1_u32.. {
        if is_stopped.load(Ordering::SeqCst) {
            return;
        }
        let temporary = file.with_extension("local");
        let replaced = fs::write(&temporary, format!("generation = {generation}\n"))
            .and_then(|()| fs::rename(&temporary, file));
        if let Err(error) = replaced {
            tracing::warn!(%error, "the writer of settings failed");
            return;
        }
        done(written, |written| &mut written.settings, generation);
        std::thread::sleep(Duration::from_millis(500));
    }
}
