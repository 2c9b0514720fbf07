//! Other tools, each set up as its own documentation recommends for production, and asked afterwards what it has
//! recorded: a row that measures a tool which is asleep is worth nothing.
//!
//! The programs are in `src/bin`. They need `--cfg tokio_unstable`, which `.cargo/config.toml` sets for whoever runs
//! cargo in this folder:
//!
//! ```text
//! cd benches/peers
//! cargo run --release --bin polls
//! cargo run --release --bin spans
//! ```

#[cfg(not(tokio_unstable))]
compile_error!(
    "`--cfg tokio_unstable` is missing: run cargo in `benches/peers`, without RUSTFLAGS in the environment (they \
     replace the ones in `.cargo/config.toml`)"
);

pub mod blocked;
pub mod console;
pub mod recording;
pub mod stalls;
