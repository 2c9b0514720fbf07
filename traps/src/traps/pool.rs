//! Getting a connection from a pool that has none left.
//!
//! People share a synchronous pool, here `r2d2`, with their handlers. `get` is quick until the pool
//! is exhausted; then it waits on a condition variable, and the worker with it. The twin's pool gives
//! its connections out by a `tokio::sync::Semaphore`, for which the task waits.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::outside;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::Connection;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "pool",
    caught: Expects::Stall(Diagnosis {
        span: "pool",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Blocked(Blocking::Lock)],
        advice: "async pool",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

#[derive(Clone)]
struct Pools {
    record: Record,
    blocking: r2d2::Pool<SqliteConnectionManager>,
    not_blocking: Arc<AsyncPool>,
}

struct AsyncPool {
    /// One permit for each idle connection.
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let file = setup.scratch.join("pool.sqlite");
    let pools = Pools {
        record: setup.record.clone(),
        blocking: r2d2::Pool::builder()
            .max_size(1)
            .build(SqliteConnectionManager::file(&file))?,
        not_blocking: Arc::new(AsyncPool {
            permits: Semaphore::new(1),
            idle: Mutex::new(vec![Connection::open(&file)?]),
        }),
    };
    Ok(Router::new()
        .route("/pool", get(pool_in_handler))
        .route("/pool/twin", get(pool_twin))
        .with_state(pools))
}

#[instrument(name = "pool", skip_all)]
async fn pool_in_handler(State(pools): State<Pools>) -> Result<String, Failure> {
    let pool = pools.blocking.clone();
    outside::hold(move |taken| {
        let _connection = pool.get()?;
        taken.keep();
        Ok(())
    })
    .await?;
    let connection = pools.record.around(|| pools.blocking.get())?;
    Ok(version(&connection)?)
}

#[instrument(skip_all)]
async fn pool_twin(State(pools): State<Pools>) -> Result<String, Failure> {
    let pool = Arc::clone(&pools.not_blocking);
    outside::hold(move |taken| {
        let _permit = pool.permits.try_acquire()?;
        taken.keep();
        Ok(())
    })
    .await?;
    pools.not_blocking.with_connection(version).await
}

fn version(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("SELECT sqlite_version()", [], |row| row.get(0))
}

impl AsyncPool {
    async fn with_connection<R>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<R>,
    ) -> Result<R, Failure> {
        let _permit = self.permits.acquire().await?;
        let connection = self.idle().pop();
        let connection = connection.ok_or_else(|| Failure::new("a permit without a connection"))?;
        let result = query(&connection);
        self.idle().push(connection);
        Ok(result?)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
