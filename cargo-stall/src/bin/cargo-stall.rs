//! `cargo stall test`, `cargo stall run`, and what `tokio-stall` does.

use std::process::ExitCode;

fn main() -> ExitCode {
    cargo_stall::cargo_stall(std::env::args_os().skip(1))
}
