//! `testing::block_on` and `testing::runtime` find every blocking call of every task, exactly.

use crate::support::failure;
use std::time::Duration;
use tokio_stall::testing::{self, Runtime};

const MS: Duration = Duration::from_millis(1);

fn current_thread() -> Runtime {
    testing::runtime_from(tokio::runtime::Builder::new_current_thread().enable_all())
}

/// Longer than the wait for a CPU that follows it on a busy machine, for which nobody is blamed.
#[inline(never)]
fn block() {
    std::thread::sleep(5 * MS);
}

async fn work_without_blocking() {
    let (send, mut receive) = tokio::sync::mpsc::channel(4);
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let send = send.clone();
            tokio::spawn(async move {
                tokio::time::sleep(MS).await;
                send.send(n).await.unwrap();
                tokio::task::spawn_blocking(block).await.unwrap();
            })
        })
        .collect();
    drop(send);
    while receive.recv().await.is_some() {}
    for task in tasks {
        task.await.unwrap();
    }
}

#[test]
fn work_that_does_not_block_passes_on_both_flavours() {
    for runtime in [testing::runtime(), current_thread()] {
        for _ in 0..10 {
            runtime.block_on(work_without_blocking());
        }
        assert!(runtime.recorded().is_empty());
    }
}

#[test]
fn a_task_that_blocks_is_found_on_both_flavours() {
    for runtime in [testing::runtime(), current_thread()] {
        let text =
            failure(|| runtime.block_on(async { tokio::spawn(async { block() }).await.unwrap() }));
        let text = text.expect("it sleeps");
        assert!(
            text.starts_with("1 blocking call on the runtime's threads\n\nblocked its thread"),
            "{text}"
        );
        assert!(
            text.contains("where     it::test_runtime::block (tests/it/test_runtime.rs:"),
            "{text}"
        );
        assert!(text.contains("one of the polls of worker"), "{text}");
        runtime.block_on(async {});
    }
}

#[test]
fn a_future_given_to_block_on_is_found_too() {
    for runtime in [testing::runtime(), current_thread()] {
        let text = failure(|| runtime.block_on(async { block() })).expect("it sleeps");
        assert!(text.contains("test_runtime::block"), "{text}");
    }
}

#[test]
fn each_of_ten_turns_that_block_is_recorded() {
    for runtime in [testing::runtime(), current_thread()] {
        let text = failure(|| {
            runtime.block_on(async {
                for _ in 0..10 {
                    tokio::spawn(async { block() }).await.unwrap();
                    // A timer parks the worker, and so ends its turn.
                    tokio::time::sleep(20 * MS).await;
                }
            });
        });
        let text = text.expect("it sleeps");
        assert!(text.starts_with("10 blocking calls"), "{text}");
    }
}

#[test]
fn block_in_place_and_allowed_blocking_pass() {
    testing::block_on(async {
        tokio::spawn(async {
            tokio::task::block_in_place(|| std::thread::sleep(20 * MS));
            tokio_stall::allow_blocking("it is a test", || std::thread::sleep(5 * MS));
        })
        .await
        .unwrap();
    });
}

#[test]
fn runtimes_do_not_see_each_other() {
    let (one, other) = (testing::runtime(), testing::runtime());
    let blocked = other.handle().spawn(async { block() });
    one.block_on(async { tokio::time::sleep(5 * MS).await });
    assert!(one.recorded().is_empty());
    let text = failure(|| other.block_on(blocked).unwrap());
    assert!(text.is_some());
}

/// The files of a thread are opened when it is measured for the first time. An earlier version took
/// a sleep in there for that of the code.
#[test]
fn the_first_turn_of_a_thread_is_recorded() {
    for _ in 0..30 {
        let runtime = testing::runtime();
        let blocked = runtime.handle().spawn(async { block() });
        let text = failure(|| runtime.block_on(blocked).unwrap());
        assert!(text.expect("it sleeps").contains("test_runtime::block"));
    }
}

#[test]
fn a_blocking_call_nobody_has_asserted_fails_at_the_drop() {
    let text = failure(|| {
        let runtime = testing::runtime();
        runtime.handle().spawn(async { block() });
        std::thread::sleep(20 * MS);
        while runtime.recorded().is_empty() {}
        drop(runtime);
    });
    assert!(text.expect("it sleeps").contains("test_runtime::block"));
}
