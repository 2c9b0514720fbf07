//! A computation that is only just too long.
//!
//! People measure their handlers in an idle service, see a few thresholds at most, and leave it at
//! that. It is a stall all the same, and the shorter it is the less time there is to find it. In a
//! saturated service its worker is never idle either, so only the poll itself tells it from
//! ordinary traffic. Each computation takes its time by the CPU clock of its thread: time for which
//! others have the CPU is not its fault. The right way is that of the other computations, hence no
//! twin.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::hint::black_box;
use std::time::Duration;
use tokio_stall::Cause;
use tracing::instrument;

const RIGHT: Diagnosis = Diagnosis {
    span: "computing",
    file: file!(),
    module: module_path!(),
    causes: &[Cause::Cpu],
    advice: "Move the computation",
};

/// Two thresholds: from here on it is promised that a stall is certain, and seen while it lasts.
const PROMISED_MILLISECONDS: u64 = 20;

/// So many steps take tens of microseconds, and a look at the clock half of one.
const STEPS_BETWEEN_LOOKS: u64 = 20_000;

/// Computes while the service has little else to do.
pub(crate) const fn idle<const MILLISECONDS: u64>(name: &'static str) -> Trap {
    Trap {
        name,
        caught: caught(MILLISECONDS),
        drive: Drive::Once,
        twin: Twin::None,
        routes: idle_routes::<MILLISECONDS>,
    }
}

/// Computes while the service has as much to do as it can.
pub(crate) const fn saturated<const MILLISECONDS: u64>(name: &'static str) -> Trap {
    Trap {
        name,
        caught: caught(MILLISECONDS),
        drive: Drive::OnceInARush,
        twin: Twin::None,
        routes: saturated_routes::<MILLISECONDS>,
    }
}

const fn caught(milliseconds: u64) -> Expects {
    if milliseconds < PROMISED_MILLISECONDS {
        Expects::ShortStall(RIGHT)
    } else {
        Expects::Stall(RIGHT)
    }
}

fn idle_routes<const MILLISECONDS: u64>(setup: &Setup<'_>) -> Result<Router, Failure> {
    let path = format!("/computing-{MILLISECONDS}");
    Ok(routes::<MILLISECONDS>(&path, setup))
}

fn saturated_routes<const MILLISECONDS: u64>(setup: &Setup<'_>) -> Result<Router, Failure> {
    let path = format!("/computing-{MILLISECONDS}/saturated");
    Ok(routes::<MILLISECONDS>(&path, setup))
}

fn routes<const MILLISECONDS: u64>(path: &str, setup: &Setup<'_>) -> Router {
    Router::new()
        .route(path, get(computing::<MILLISECONDS>))
        .with_state(setup.record.clone())
}

#[instrument(skip_all)]
async fn computing<const MILLISECONDS: u64>(State(record): State<Record>) -> String {
    let length = Duration::from_millis(MILLISECONDS);
    record.around(|| compute(length)).to_string()
}

/// Steps of a generator of random numbers, until the thread has computed for that long.
fn compute(length: Duration) -> u64 {
    let until = cpu_time() + length;
    let mut state = 0x853c_49e6_748f_ea9b_u64;
    while cpu_time() < until {
        for _ in 0..STEPS_BETWEEN_LOOKS {
            state = black_box(state)
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(1);
        }
    }
    state
}

/// How long the current thread has been on a CPU.
#[cfg(target_os = "linux")]
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).expect("a thread has not computed for less than no time")
}

/// How long the program has been running, where there is no clock for each thread.
#[cfg(not(target_os = "linux"))]
fn cpu_time() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}
