//! The smallest program that blocks, and is told so.
//!
//! Run with: `cargo run --example hello_stall`

use std::time::{Duration, Instant};
use tokio_stall::{Phase, StallReport};

#[tokio::main]
async fn main() -> Result<(), tokio_stall::StartError> {
    let watch = tokio_stall::Builder::new()
        .on_stall(|report| println!("{report}\n"))
        .start()?;

    let task = tokio::spawn(async { load_profile() });
    let took = task.await.expect("the task does not panic");

    // Time to hear of the end: without optimisation the first stack takes a moment.
    let until = Instant::now() + Duration::from_secs(30);
    while !watch.recent().iter().any(has_ended) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("loaded in {took:?}");
    Ok(())
}

fn has_ended(stall: &StallReport) -> bool {
    stall.phase == Phase::Ended
}

#[inline(never)] // so that it has a name even in a program without debug information
fn load_profile() -> Duration {
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(200)); // tokio::time::sleep(…).await would not block
    start.elapsed()
}
