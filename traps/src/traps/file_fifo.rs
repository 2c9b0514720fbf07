//! Reading a file that is not there yet.
//!
//! People read small files with `std::fs`, as files are fast. A FIFO, a terminal, a network mount or
//! a device answers when it can, and the worker waits in `open` and `read`. The twin uses `tokio::fs`,
//! which reads on a thread of the blocking pool.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::outside::SLOW;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use rustix::fs::{CWD, Mode, mkfifoat};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "file-fifo",
    caught: Expects::Stall(Diagnosis {
        span: "file_fifo",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Blocked(Blocking::File)],
        advice: "tokio::fs",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

#[derive(Clone)]
struct Fifo {
    record: Record,
    path: Arc<PathBuf>,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let path = setup.scratch.join("fifo");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR)?;
    let fifo = Fifo {
        record: setup.record.clone(),
        path: Arc::new(path),
    };
    Ok(Router::new()
        .route("/file-fifo", get(file_fifo))
        .route("/file-fifo/twin", get(file_fifo_twin))
        .with_state(fifo))
}

#[instrument(skip_all)]
async fn file_fifo(State(fifo): State<Fifo>) -> Result<String, Failure> {
    fifo.start_slow_writer();
    Ok(fifo.record.around(|| fs::read_to_string(&*fifo.path))?)
}

#[instrument(skip_all)]
async fn file_fifo_twin(State(fifo): State<Fifo>) -> Result<String, Failure> {
    fifo.start_slow_writer();
    Ok(tokio::fs::read_to_string(&*fifo.path).await?)
}

impl Fifo {
    fn start_slow_writer(&self) {
        let path = Arc::clone(&self.path);
        thread::spawn(move || write_slowly(&path));
    }
}

fn write_slowly(path: &Path) -> io::Result<()> {
    let mut fifo = OpenOptions::new().write(true).open(path)?;
    thread::sleep(SLOW);
    fifo.write_all(b"at last")
}
