//! The smallest program that blocks, and is told so.
//!
//! Run with: `cargo run --example hello_stall`

use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), tokio_stall::StartError> {
    let _watch = tokio_stall::Builder::new()
        .on_stall(|report| println!("{report}\n"))
        .start()?;

    let task = tokio::spawn(async {
        std::thread::sleep(Duration::from_millis(200)); // tokio::time::sleep(…).await would not block
    });
    task.await.expect("the task does not panic");

    tokio::time::sleep(Duration::from_millis(100)).await; // time to hear of the end
    Ok(())
}
