//! The smallest program that blocks, and is told so.
//!
//! Run with: `cargo run --example hello_stall`

use std::time::{Duration, Instant};

#[tokio::main]
async fn main() -> Result<(), tokio_stall::StartError> {
    let _watch = tokio_stall::Builder::new()
        .on_stall(|report| println!("{report}\n"))
        .start()?;

    let task = tokio::spawn(async { load_profile() });
    let took = task.await.expect("the task does not panic");

    tokio::time::sleep(Duration::from_millis(100)).await; // time to hear of the end
    println!("loaded in {took:?}");
    Ok(())
}

#[inline(never)] // so that it has a name even in a program without debug information
fn load_profile() -> Duration {
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(200)); // tokio::time::sleep(…).await would not block
    start.elapsed()
}
