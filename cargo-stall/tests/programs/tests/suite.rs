//! Tests of which two block. A test that is observed is not changed by it.

use programs::{computes, locks, sleeps};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3);

#[tokio::test]
async fn sleeps_in_a_poll() {
    sleeps(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn waits_for_a_lock_on_a_worker() {
    tokio::spawn(locks(LONG)).await.unwrap();
}

#[tokio::test]
async fn waits_without_blocking() {
    tokio::time::sleep(LONG).await;
}

#[test]
fn blocks_without_a_runtime() {
    std::thread::sleep(LONG);
}

#[tokio::test]
#[ignore = "for the tests of certainty"]
async fn computes_in_a_poll() {
    computes(LONG).await;
}
