//! A slow query through a blocking database driver.
//!
//! People call `rusqlite` from a handler, for it is only one query. SQLite works out the answer on
//! the calling thread: the worker reads pages and compares rows. The twin does the same in
//! `spawn_blocking`.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use rusqlite::Connection;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task;
use tokio_stall::Cause;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "database",
    caught: Expects::Stall(Diagnosis {
        span: "database",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Cpu],
        advice: "database",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

struct Database {
    record: Record,
    connection: Mutex<Connection>,
    /// How many days the slow query covers.
    days: u64,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let connection = Connection::open(setup.scratch.join("visits.sqlite"))?;
    connection.execute_batch(
        "CREATE TABLE visits (day INTEGER PRIMARY KEY, visitors INTEGER NOT NULL);
         WITH RECURSIVE new(day) AS (SELECT 0 UNION ALL SELECT day + 1 FROM new WHERE day < 999)
         INSERT INTO visits SELECT day, day * 7 % 100 FROM new;",
    )?;
    let days = calibrate::units(TARGET, 10_000..=10_000_000, |days| {
        let (took, answer) = calibrate::time(|| busiest_day(&connection, days));
        answer?;
        Ok(took)
    })?;

    let database = Database {
        record: setup.record.clone(),
        connection: Mutex::new(connection),
        days,
    };
    Ok(Router::new()
        .route("/database", get(database_in_handler))
        .route("/database/twin", get(database_twin))
        .with_state(Arc::new(database)))
}

/// Looks every day up, one by one: the query nobody has looked at since the table was small.
fn busiest_day(connection: &Connection, days: u64) -> rusqlite::Result<i64> {
    connection.query_row(
        "WITH RECURSIVE calendar(day) AS
             (SELECT 1 UNION ALL SELECT day + 1 FROM calendar WHERE day < ?1)
         SELECT max(visitors) FROM calendar JOIN visits ON visits.day = calendar.day % 1000",
        // SQLite knows signed integers only; days are far fewer.
        [days as i64],
        |row| row.get(0),
    )
}

#[instrument(name = "database", skip_all)]
async fn database_in_handler(State(database): State<Arc<Database>>) -> Result<String, Failure> {
    let answer = database.record.around(|| database.busiest_day())?;
    Ok(answer.to_string())
}

#[instrument(skip_all)]
async fn database_twin(State(database): State<Arc<Database>>) -> Result<String, Failure> {
    let answer = task::spawn_blocking(move || database.busiest_day()).await??;
    Ok(answer.to_string())
}

impl Database {
    fn busiest_day(&self) -> rusqlite::Result<i64> {
        // A query leaves the connection usable, whatever becomes of it.
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        busiest_day(&connection, self.days)
    }
}
