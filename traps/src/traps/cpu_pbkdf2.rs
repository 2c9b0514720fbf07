//! Hashing a password.
//!
//! People check a password where they need it, in the login handler. Password hashes are made to be
//! slow, and the worker does nothing else meanwhile. The twin hashes in `spawn_blocking`.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use pbkdf2::pbkdf2_hmac;
use sha2::Sha256;
use std::hint::black_box;
use tokio::task;
use tokio_stall::Cause;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "cpu-pbkdf2",
    caught: Expects::Stall(Diagnosis {
        span: "cpu_pbkdf2",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Cpu],
        advice: "Password",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

#[derive(Clone)]
struct Login {
    record: Record,
    rounds: u32,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let rounds = calibrate::units(TARGET, 1_000..=10_000_000, |rounds| {
        let (took, hash) = calibrate::time(|| hash(rounds as u32));
        black_box(hash);
        Ok(took)
    })?;
    let login = Login {
        record: setup.record.clone(),
        rounds: rounds as u32,
    };
    Ok(Router::new()
        .route("/cpu-pbkdf2", get(cpu_pbkdf2))
        .route("/cpu-pbkdf2/twin", get(cpu_pbkdf2_twin))
        .with_state(login))
}

fn hash(rounds: u32) -> [u8; 32] {
    let mut hash = [0; 32];
    pbkdf2_hmac::<Sha256>(b"correct horse", b"battery staple", rounds, &mut hash);
    hash
}

#[instrument(skip_all)]
async fn cpu_pbkdf2(State(login): State<Login>) -> Vec<u8> {
    login.record.around(|| hash(login.rounds)).to_vec()
}

#[instrument(skip_all)]
async fn cpu_pbkdf2_twin(State(login): State<Login>) -> Result<Vec<u8>, Failure> {
    let hash = task::spawn_blocking(move || hash(login.rounds)).await?;
    Ok(hash.to_vec())
}
