//! The traps, one to a file: what people write, why it blocks, and what to write instead.
//!
//! Each has a route that blocks, at `/name`, and mostly its twin, at `/name/twin`. The handler's name
//! is the name of its span, and so the name that a report must show. While it blocks, the
//! innermost frame of the example's own code is in the trap's file: that is the site to be reported.

mod background;
mod blocking_pool;
mod computing;
mod cpu_pbkdf2;
mod cpu_sum;
mod database;
mod drop_boxes;
mod endless;
mod file_fifo;
mod file_fsync;
mod http_client;
mod json;
mod lock;
pub(crate) mod logging;
mod many_queries;
mod middleware;
mod nested_runtime;
mod pool;
mod sleep;

use crate::corpus::{Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use logging::AccessLogs;
use std::path::Path;

pub(crate) const ALL: &[Trap] = &[
    sleep::TRAP,
    http_client::TRAP,
    database::TRAP,
    many_queries::TRAP,
    pool::TRAP,
    file_fifo::TRAP,
    file_fsync::TRAP,
    cpu_sum::TRAP,
    cpu_pbkdf2::TRAP,
    json::TRAP,
    logging::TRAP,
    lock::TRAP,
    background::TRAP,
    middleware::TRAP,
    nested_runtime::TRAP,
    blocking_pool::TRAP,
    drop_boxes::TRAP,
    endless::TRAP,
    computing::idle::<15>("computing-15"),
    computing::idle::<20>("computing-20"),
    computing::idle::<30>("computing-30"),
    computing::idle::<60>("computing-60"),
    computing::saturated::<15>("computing-15/saturated"),
    computing::saturated::<20>("computing-20/saturated"),
    computing::saturated::<30>("computing-30/saturated"),
    computing::saturated::<60>("computing-60/saturated"),
];

#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) name: &'static str,
    /// What the detector should report.
    pub(crate) caught: Expects,
    pub(crate) drive: Drive,
    pub(crate) twin: Twin,
    /// Prepares the trap, and gives its routes. Called before there is a runtime to disturb.
    pub(crate) routes: fn(&Setup<'_>) -> Result<Router, Failure>,
}

/// Whether there is a right way, and when it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Twin {
    /// It has done its work when it answers.
    Waits,
    /// It answers first, and puts a note into the record when it has done its work.
    InBackground,
    None,
}

/// What traps need to prepare themselves.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// For their files; removed at the end.
    pub(crate) scratch: &'a Path,
    pub(crate) record: &'a Record,
    pub(crate) logs: &'a AccessLogs,
}
