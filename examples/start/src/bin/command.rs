//! A command-line program on one thread. It runs another program, and shows its progress meanwhile.
//!
//! `cargo run -p start --bin command`; with `twin`, the same without a stall

use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use tokio_stall::{Guard, Phase, StallReport};

// region watch
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Standard output belongs to the command.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let watch = tokio_stall::Builder::from_env()
        .startup_grace(Duration::ZERO) // by default, the first 2 s are not logged
        .start()?;
    let result = run().await;
    settle(&watch).await;
    drop(watch);
    Ok(result?)
}

/// Waits for the last reports of stalls, for five seconds at most.
async fn settle(watch: &Guard) {
    let until = Instant::now() + Duration::from_secs(5);
    let is_open = |stall: &StallReport| stall.phase != Phase::Ended;
    let goes_on = || !watch.stalled_now().is_empty() || watch.recent().iter().any(is_open);
    while goes_on() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
// endregion

async fn run() -> std::io::Result<()> {
    let progress = tokio::spawn(progress());
    let status = if std::env::args().any(|argument| argument == "twin") {
        compress_beside().await?
    } else {
        compress()?
    };
    progress.abort();
    println!("done: {status}");
    Ok(())
}

/// Waits for the other program, and nothing else runs meanwhile.
#[inline(never)]
fn compress() -> std::io::Result<ExitStatus> {
    Command::new("sleep").arg("0.4").status() // planted
}

/// Leaves the thread to others while the other program runs. `tokio::process` does so, too, but its
/// start of a program holds the thread until the kernel has given the new process a CPU.
async fn compress_beside() -> std::io::Result<ExitStatus> {
    tokio::task::spawn_blocking(compress).await?
}

async fn progress() {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        eprint!(".");
    }
}
