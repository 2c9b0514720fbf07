//! Writing a large file, and waiting until it is safely on the disk.
//!
//! People save an upload with `std::fs`, and `sync_all` it to be sure. Writing copies into the page
//! cache, and syncing waits for the disk, both on the worker. The twin does the same through
//! `tokio::fs`.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "file-fsync",
    caught: Expects::Stall(Diagnosis {
        span: "file_fsync",
        file: file!(),
        module: module_path!(),
        // Writing computes, and syncing sleeps: which takes longer is up to the disk.
        causes: &[Cause::Blocked(Blocking::File), Cause::Cpu],
        advice: "tokio::fs",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

/// 64 of these are written.
static PART: [u8; 1 << 20] = [0x5a; 1 << 20];
const PARTS: usize = 64;

#[derive(Clone)]
struct Upload {
    record: Record,
    path: Arc<PathBuf>,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let upload = Upload {
        record: setup.record.clone(),
        path: Arc::new(setup.scratch.join("upload")),
    };
    Ok(Router::new()
        .route("/file-fsync", get(file_fsync))
        .route("/file-fsync/twin", get(file_fsync_twin))
        .with_state(upload))
}

#[instrument(skip_all)]
async fn file_fsync(State(upload): State<Upload>) -> Result<(), Failure> {
    Ok(upload.record.around(|| save(&upload.path))?)
}

fn save(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..PARTS {
        file.write_all(&PART)?;
    }
    file.sync_all()
}

#[instrument(skip_all)]
async fn file_fsync_twin(State(upload): State<Upload>) -> Result<(), Failure> {
    let mut file = tokio::fs::File::create(&*upload.path).await?;
    for _ in 0..PARTS {
        file.write_all(&PART).await?;
    }
    file.sync_all().await?;
    Ok(())
}
