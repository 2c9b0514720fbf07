//! One small query for each of many things.
//!
//! People load a list, and then something for each of its items; each query is far too short to be
//! noticed. Together they are one long poll, for nothing between them yields. The twin asks for all
//! at once, in `spawn_blocking`.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use rusqlite::{Connection, params};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task;
use tokio_stall::Cause;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "many-queries",
    caught: Expects::Stall(Diagnosis {
        span: "many_queries",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Cpu],
        advice: "database",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

const QUERIES: u64 = 300;

/// Users in the table while one query is measured.
const SAMPLE: u64 = 1_000;

struct Users {
    record: Record,
    connection: Mutex<Connection>,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let connection = Connection::open(setup.scratch.join("users.sqlite"))?;
    connection.execute_batch("CREATE TABLE users (email TEXT NOT NULL, name TEXT NOT NULL)")?;
    // Without an index, a query takes as long as the table is large: so the table is made to fit.
    add_users(&connection, 0, SAMPLE)?;
    let rows = calibrate::units(TARGET, 100_000..=100_000_000, |rows| {
        let mut queries = 0..rows / SAMPLE;
        let (took, found) = calibrate::time(|| {
            queries.try_for_each(|_| find(&connection, "nobody@example.com").map(drop))
        });
        found?;
        Ok(took)
    })?;
    add_users(&connection, SAMPLE, (rows / QUERIES).max(SAMPLE))?;

    let users = Users {
        record: setup.record.clone(),
        connection: Mutex::new(connection),
    };
    Ok(Router::new()
        .route("/many-queries", get(many_queries))
        .route("/many-queries/twin", get(many_queries_twin))
        .with_state(Arc::new(users)))
}

fn add_users(connection: &Connection, from: u64, to: u64) -> rusqlite::Result<()> {
    let add = connection.unchecked_transaction()?;
    let mut insert = add.prepare("INSERT INTO users VALUES (?1, ?2)")?;
    for number in from..to {
        insert.execute(params![email(number), format!("user {number}")])?;
    }
    drop(insert);
    add.commit()
}

fn email(number: u64) -> String {
    format!("user{number}@example.com")
}

#[instrument(skip_all)]
async fn many_queries(State(users): State<Arc<Users>>) -> Result<String, Failure> {
    let found = users.record.around(|| users.find_each())?;
    Ok(found.to_string())
}

#[instrument(skip_all)]
async fn many_queries_twin(State(users): State<Arc<Users>>) -> Result<String, Failure> {
    let found = task::spawn_blocking(move || users.find_all()).await??;
    Ok(found.to_string())
}

impl Users {
    fn find_each(&self) -> rusqlite::Result<i64> {
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut found = 0;
        for number in 0..QUERIES {
            found += find(&connection, &email(number))?;
        }
        Ok(found)
    }

    fn find_all(&self) -> rusqlite::Result<i64> {
        let emails: Vec<String> = (0..QUERIES).map(email).collect();
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connection.query_row(
            "SELECT count(*) FROM users WHERE email IN (SELECT value FROM json_each(?1))",
            [serde_json::json!(emails).to_string()],
            |row| row.get(0),
        )
    }
}

fn find(connection: &Connection, email: &str) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT count(*) FROM users WHERE email = ?1")?
        .query_row([email], |row| row.get(0))
}
