//! `tokio-stall attach PID`, `tokio-stall dump PID`, `tokio-stall report FILE`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cargo_stall::tokio_stall(std::env::args_os().skip(1))
}
