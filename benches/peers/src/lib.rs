//! Other tools, each set up as its own documentation recommends for production, and asked afterwards what it has
//! recorded: a row that measures a tool which is asleep is worth nothing.
//!
//! The programs are in `src/bin`. They need `--cfg tokio_unstable`, which `benches/run` sets:
//!
//! ```text
//! benches/run peers-polls peers-spans peers-service
//! ```

#[cfg(not(tokio_unstable))]
compile_error!(
    "`--cfg tokio_unstable` is missing: run `benches/run peers-polls`, or set RUSTFLAGS as it does"
);

pub mod blocked;
pub mod console;
pub mod recording;
pub mod stalls;
