//! Expensive work before each request.
//!
//! People read a file in an extractor or a middleware, here to hash its rules for each tenant, and
//! forget that this runs for every request. The file is small and the tenants became many: it is the
//! hashing that holds the worker. The twin extracts a digest that was made once, at the start.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::routing::get;
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_stall::Cause;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "middleware",
    caught: Expects::Stall(Diagnosis {
        span: "fresh_digest",
        file: file!(),
        module: module_path!(),
        // Reading so small a file takes no time beside hashing it so often.
        causes: &[Cause::Cpu],
        advice: "Hash large data",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

const FILE_BYTES: usize = 4_096;

struct Policy {
    record: Record,
    path: PathBuf,
    tenants: u64,
    digest: Vec<u8>,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let path = setup.scratch.join("policy");
    fs::write(&path, [b'p'; FILE_BYTES])?;
    let tenants = calibrate::units(TARGET, 1_000..=10_000_000, |tenants| {
        let (took, digest) = calibrate::time(|| digest(&path, tenants));
        digest?;
        Ok(took)
    })?;
    let policy = Policy {
        record: setup.record.clone(),
        digest: digest(&path, tenants)?,
        path,
        tenants,
    };
    Ok(Router::new()
        .route("/middleware", get(middleware))
        .route("/middleware/twin", get(middleware_twin))
        .with_state(Arc::new(policy)))
}

fn digest(path: &Path, tenants: u64) -> io::Result<Vec<u8>> {
    let rules = fs::read(path)?;
    let mut digest = Sha256::new();
    for tenant in 0..tenants {
        digest.update(tenant.to_le_bytes());
        digest.update(&rules);
    }
    Ok(digest.finalize().to_vec())
}

/// Read and hashed for this request.
struct Fresh(Vec<u8>);

impl FromRequestParts<Arc<Policy>> for Fresh {
    type Rejection = Failure;

    #[instrument(name = "fresh_digest", skip_all)]
    async fn from_request_parts(_: &mut Parts, policy: &Arc<Policy>) -> Result<Fresh, Failure> {
        let digest = policy
            .record
            .around(|| digest(&policy.path, policy.tenants))?;
        Ok(Fresh(digest))
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
