//! A small module with its tests: how blocking is forbidden in a test suite, and what a failure looks like.
//!
//! Run with: `cargo run --features testing --example in_tests`. It runs the tests below one after the other and shows
//! the texts of those that are meant to fail. In a crate of your own they are `#[test]` and `#[tokio::test]` functions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tokio_stall::testing;

/// What is tested: prices, which come from a slow place the first time.
mod prices {
    use std::time::Duration;

    /// Leaves the worker to others while it waits.
    pub(crate) async fn fetch() -> u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        1299
    }

    /// Looks as innocent, and holds its worker.
    pub(crate) async fn fetch_with_a_driver_of_old() -> u64 {
        query()
    }

    #[inline(never)]
    fn query() -> u64 {
        std::thread::sleep(Duration::from_millis(5));
        1299
    }
}

/// `#[tokio::test]`: one future.
async fn fetching_never_blocks() {
    let price = testing::assert_never_blocks(prices::fetch()).await;
    assert_eq!(price, 1299);
}

/// `#[tokio::test]`: deliberately failing.
async fn fetching_from_of_old_never_blocks() {
    testing::assert_never_blocks(prices::fetch_with_a_driver_of_old()).await;
}

/// `#[test]`: a future and every task it spawns.
fn ten_customers_never_block_the_runtime() {
    testing::block_on(async {
        let customers: Vec<_> = (0..10).map(|_| tokio::spawn(prices::fetch())).collect();
        for customer in customers {
            assert_eq!(customer.await.unwrap(), 1299);
        }
    });
}

/// `#[tokio::test]`: everything that happens on the runtime.
async fn nothing_stalls() {
    let stalls = testing::watch();
    tokio::spawn(prices::fetch()).await.unwrap();
    stalls.assert_none();
}

/// `#[tokio::test]`: what blocks on purpose says why.
async fn the_start_may_block() {
    testing::assert_never_blocks(async {
        tokio_stall::allow_blocking("reads its table once, before it serves", || {
            std::thread::sleep(Duration::from_millis(5));
        });
        prices::fetch().await;
    })
    .await;
}

fn main() {
    let tokio_test = |test: fn() -> std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(test());
    };
    let passing: [(&str, &dyn Fn()); 4] = [
        ("fetching_never_blocks", &|| {
            tokio_test(|| Box::pin(fetching_never_blocks()))
        }),
        (
            "ten_customers_never_block_the_runtime",
            &ten_customers_never_block_the_runtime,
        ),
        ("nothing_stalls", &|| {
            tokio_test(|| Box::pin(nothing_stalls()))
        }),
        ("the_start_may_block", &|| {
            tokio_test(|| Box::pin(the_start_may_block()))
        }),
    ];
    for (name, test) in passing {
        test();
        println!("test {name} ... ok");
    }
    let failing = || tokio_test(|| Box::pin(fetching_from_of_old_never_blocks()));
    let failed = catch_unwind(AssertUnwindSafe(failing));
    assert!(
        failed.is_err() || cfg!(not(target_os = "linux")),
        "it blocks, and must fail"
    );
    println!("test fetching_from_of_old_never_blocks ... FAILED, as it should");
}
