//! Expensive work before each request.
//!
//! People read a file in an extractor or a middleware, here to compare its digest, and forget that
//! this runs for every request. The file grew, and reading and hashing it holds the worker. The twin
//! extracts a digest that was made once, at the start.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::Expects;
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::routing::get;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "middleware",
    caught: Expects::Stall("fresh_digest"),
    twin: Twin::Waits,
    routes,
};

struct Policy {
    record: Record,
    path: PathBuf,
    digest: Vec<u8>,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let path = setup.scratch.join("policy");
    let megabytes = calibrate::units(TARGET, 4..=256, |megabytes| {
        write(&path, megabytes)?;
        let (took, digest) = calibrate::time(|| digest(&path));
        digest?;
        Ok(took)
    })?;
    write(&path, megabytes)?;

    let policy = Policy {
        record: setup.record.clone(),
        digest: digest(&path)?,
        path,
    };
    Ok(Router::new()
        .route("/middleware", get(middleware))
        .route("/middleware/twin", get(middleware_twin))
        .with_state(Arc::new(policy)))
}

fn write(path: &Path, megabytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let megabyte = vec![b'p'; 1 << 20];
    for _ in 0..megabytes {
        file.write_all(&megabyte)?;
    }
    Ok(())
}

fn digest(path: &Path) -> io::Result<Vec<u8>> {
    Ok(Sha256::digest(fs::read(path)?).to_vec())
}

/// Read and hashed for this request.
struct Fresh(Vec<u8>);

impl FromRequestParts<Arc<Policy>> for Fresh {
    type Rejection = Failure;

    #[instrument(name = "fresh_digest", skip_all)]
    async fn from_request_parts(_: &mut Parts, policy: &Arc<Policy>) -> Result<Fresh, Failure> {
        Ok(Fresh(policy.record.around(|| digest(&policy.path))?))
    }
}

/// Read and hashed when the service started.
struct Cached(Arc<Policy>);

impl FromRequestParts<Arc<Policy>> for Cached {
    type Rejection = Failure;

    #[instrument(name = "cached_digest", skip_all)]
    async fn from_request_parts(_: &mut Parts, policy: &Arc<Policy>) -> Result<Cached, Failure> {
        Ok(Cached(Arc::clone(policy)))
    }
}

#[instrument(skip_all)]
async fn middleware(Fresh(digest): Fresh) -> Vec<u8> {
    digest
}

#[instrument(skip_all)]
async fn middleware_twin(Cached(policy): Cached) -> Vec<u8> {
    policy.digest.clone()
}
