//! The start and the end of a watch: the builder, the threads, the guard.
//!
//! *Runs on:* the user's threads.

mod add;
mod builder;
mod diagnosis;
mod env;
mod guard;
mod plan;
mod status;
mod threads;

pub use builder::{Builder, watch};
pub use diagnosis::{Diagnosis, Observation, SettingInForce, SettingSource};
pub use guard::Guard;
#[cfg(feature = "serve")]
pub use status::RecordingStatus;
pub use status::{RuntimeStatus, Status, Waits, WorkerTime};
