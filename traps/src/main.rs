//! A web service that falls into every trap that blocks an event loop, and a judge of what the
//! detector says about it.
//!
//! ```text
//! cargo run --release -p traps
//! cargo run --release -p traps -- --json
//! cargo run --release -p traps -- --only file
//! cargo run --release -p traps -- --unmarked
//! cargo build --release -p cargo-stall && cargo run --release -p traps -- --outside
//! ```
//!
//! The service is a real axum server with two workers; a client in the same process, on a thread
//! and a runtime of its own, calls it over HTTP, with light traffic on other routes all the time.
//! For each of the 26 traps there is a route that blocks for real, and mostly beside it, as its
//! twin, a route that does the same without blocking. Each trap must be reported while it lasts, by
//! its name, and with the right duration, line of code, cause and advice. Twins and controls must
//! not be reported at all. Otherwise the exit code is 1.
//!
//! With `--unmarked` neither the detector's layer nor its wrapper marks a poll, as in a service
//! that has only started the detector. No trap has a name then, and all the rest must be as right.
//!
//! With `--outside` there is no detector in the process. `tokio-stall attach` looks at it.
//!
//! ```text
//! client ──▶ server ──▶ traps, controls ──▶ record (what really happened) ──▶ judge ──▶ output
//!                            └──▶ tokio_stall ──▶ sightings (what was reported) ──┘
//! ```

mod calibrate;
mod client;
mod controls;
mod corpus;
mod failure;
mod judge;
mod observer;
mod outcome;
mod output;
mod outside;
mod record;
mod server;
mod sightings;
mod subscriber;
mod traps;

use crate::client::Client;
use crate::corpus::Detector;
use crate::failure::Failure;
use crate::judge::Judge;
use crate::observer::Observer;
use crate::outcome::Summary;
use crate::output::Output;
use crate::sightings::{Desk, News, Sightings};
use clap::Parser;
use std::process::ExitCode;
use std::thread;
use tokio::runtime::Runtime;
use tokio_stall::Guard;

/// Blocks a Tokio service in every way there is, and checks that each is found.
#[derive(Parser)]
struct Arguments {
    /// Print one JSON object per line instead of reports and a table
    #[arg(long)]
    json: bool,
    /// Run only what has a name that begins like this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Run without layer and wrapper: nothing marks a poll
    #[arg(long)]
    unmarked: bool,
    /// Run without the detector, and have `tokio-stall attach` look at this process
    #[arg(long, conflicts_with = "unmarked")]
    outside: bool,
}

impl Arguments {
    fn detector(&self) -> Detector {
        match (self.unmarked, self.outside) {
            (_, true) => Detector::Outside,
            (true, false) => Detector::Unmarked,
            (false, false) => Detector::Marked,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(summary) if summary.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("traps: {failure}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Summary, Failure> {
    let detector = arguments.detector();
    let marked = detector == Detector::Marked;
    let entries = corpus::entries(arguments.only.as_deref().unwrap_or_default(), detector);
    if entries.is_empty() {
        return Err(Failure::new(
            "nothing here has a name that begins like this",
        ));
    }
    let output = if arguments.json {
        Output::Json
    } else {
        Output::ForPeople
    };
    let scratch = tempfile::tempdir()?;
    let (record, records) = record::channel();
    let (sightings, desk) = Sightings::new();
    let logs = subscriber::install(arguments.json, marked)?;
    let setup = traps::Setup {
        scratch: scratch.path(),
        record: &record,
        logs: &logs,
    };
    let routes = server::routes(&entries, &setup, marked)?;

    let runtime = server::runtime(marked)?;
    let (watch, observer) = match detector {
        Detector::Outside => (None, Some(Observer::start(&runtime, desk, output)?)),
        Detector::Marked | Detector::Unmarked => (Some(watch(&runtime, desk, output)?), None),
    };
    let server = server::start(&runtime, routes)?;

    let judge = Judge::new(Client::new(server)?, sightings, records, output);
    let client = thread::Builder::new()
        .name("client".to_owned())
        .spawn(move || judge.run(entries))?;
    let summary = client
        .join()
        .map_err(|_| Failure::new("the client panicked"))?;
    drop((watch, observer));
    summary
}

/// Starts the detector in this process.
fn watch(runtime: &Runtime, desk: Desk, output: Output) -> Result<Guard, Failure> {
    let pool_waits = desk.clone();
    let watch = tokio_stall::Builder::new()
        .runtime("api", runtime.handle().clone())
        .on_stall(move |report| {
            let begun_at_the_latest = report.started_at + report.duration_error;
            desk.put(News::Stall(Box::new(report.clone()), begun_at_the_latest));
            output.report(report);
        })
        .on_pool_wait(move |report| {
            pool_waits.put(News::PoolWait(report.clone()));
            output.report(report);
        });
    Ok(watch.start()?)
}
