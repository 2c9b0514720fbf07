//! A handler with a test that forbids blocking, and one that blocks.
//!
//! `cargo test -p start --test handlers`, or `cargo nextest run -p start --test handlers`. The test
//! of the handler that blocks fails, so it is ignored: `-- --ignored` runs it, and shows the text.

use std::time::Duration;

async fn price() -> u64 {
    tokio::time::sleep(Duration::from_millis(5)).await;
    1299
}

async fn price_of_old() -> u64 {
    query()
}

#[inline(never)]
fn query() -> u64 {
    std::thread::sleep(Duration::from_millis(5)); // planted
    1299
}

// region watch
#[tokio::test]
async fn the_price_never_blocks() {
    let price = tokio_stall::testing::assert_never_blocks(price()).await;
    assert_eq!(price, 1299);
}

#[test]
fn nor_does_a_task_of_it() {
    tokio_stall::testing::block_on(async { tokio::spawn(price()).await.unwrap() });
}
// endregion

#[tokio::test]
async fn a_query_of_sqlx_never_blocks() {
    let pool = sqlx::SqlitePool::connect("sqlite::memory:").await.unwrap();
    let query = async {
        let query = sqlx::query_scalar::<_, i64>("select 42");
        query.fetch_one(&pool).await
    };
    let answer = tokio_stall::testing::assert_never_blocks(query).await;
    assert_eq!(answer.unwrap(), 42);
}

#[tokio::test]
#[ignore = "it blocks, and fails"]
async fn the_price_of_old_never_blocks() {
    tokio_stall::testing::assert_never_blocks(price_of_old()).await;
}
