//! A program that asks a database through sqlx. One of its functions is not async, so it waits for
//! the answer with `block_on`, on a worker.
//!
//! `cargo run -p start --bin database`; with `twin`, the same without a stall

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use std::error::Error;
use tokio_stall::Builder;

/// Counts without an index: it takes a while.
const REPORT: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) \
                      SELECT count(*) FROM n";

// region watch
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().init();
    let watch = tokio_stall::watch()?;
    // A task, since the future of `main` runs on no worker.
    tokio::spawn(serve()).await??;
    start::settle(&watch).await; // example only
    drop(watch);
    Ok(())
}
// endregion

async fn serve() -> Result<(), Box<dyn Error + Send + Sync>> {
    let folder = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("shop.db"))
        .create_if_missing(true);
    let pool = SqlitePoolOptions::new().connect_with(options).await?;
    // Stalls of the first two seconds are not logged.
    tokio::time::sleep(Builder::DEFAULT_STARTUP_GRACE).await;
    sqlx::query("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        .execute(&pool)
        .await?;
    for _ in 0..10 {
        let insert = sqlx::query("INSERT INTO orders DEFAULT VALUES");
        insert.execute(&pool).await?;
    }
    let report = if std::env::args().any(|argument| argument == "twin") {
        sqlx::query_scalar(REPORT).fetch_one(&pool).await?
    } else {
        report(&pool)?
    };
    println!("done: {report} rows");
    Ok(())
}

/// As in a trait whose method is not async.
#[inline(never)]
fn report(pool: &SqlitePool) -> Result<i64, sqlx::Error> {
    futures::executor::block_on(sqlx::query_scalar(REPORT).fetch_one(pool)) // planted
}
