//! A library with a C interface that watches a runtime of its own, for hosts that load and unload it.
//!
//! `tests/unload.rs` is such a host.

use std::sync::mpsc;
use std::time::Duration;
use tokio_stall::{Builder, FutureExt as _, Stacks};

/// Runs a service under watch until one stall has been reported. Returns 1, or 0 if none has been.
/// With `stacks`, a signal handler of this library stays installed.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn plugin_run(stacks: bool) -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build();
    let Ok(runtime) = runtime else {
        return 0;
    };
    let (reported, reports) = mpsc::channel();
    let watch = Builder::new()
        .runtime("plugin", runtime.handle().clone())
        .stacks(if stacks { Stacks::Auto } else { Stacks::Off })
        .on_stall(move |_| reported.send(()).unwrap_or_default())
        .start();
    let Ok(_watch) = watch else {
        return 0;
    };
    // The worker is blocked until the report of it has come.
    let blocks = async move { reports.recv_timeout(Duration::from_secs(20)).is_ok() };
    let task = runtime.spawn(blocks.watched("plugin"));
    runtime.block_on(task).map_or(0, i32::from)
}

/// Does nothing.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn plugin_rest() {}
