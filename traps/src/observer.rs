//! The detector that looks from outside: `tokio-stall attach`, on this process.

use crate::failure::Failure;
use crate::output::Output;
use crate::sightings::{Desk, News};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_stall::StallReport;

/// The threshold of the detector that is in the process.
const THRESHOLD: &str = "10ms";

/// A stall that shows that the observer is at work, and how often it is tried.
const TRIAL: Duration = Duration::from_millis(100);
const TRIALS: usize = 100;

/// The observer of this process. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Observer(Child);

impl Observer {
    /// Starts it, and waits until it has reported a stall that is made for it.
    pub(crate) fn start(
        runtime: &Runtime,
        desk: Desk,
        output: Output,
    ) -> Result<Observer, Failure> {
        let program = std::env::current_exe()?.with_file_name("tokio-stall");
        let mut command = Command::new(&program);
        let pid = std::process::id().to_string();
        command.args(["attach", &pid, "--json", "--threshold", THRESHOLD]);
        let started = command.stdout(Stdio::piped()).spawn();
        let mut child = started.map_err(|error| {
            let program = program.display();
            let fix = "build it with the same profile: cargo build --release -p cargo-stall";
            Failure::new(format!("{program}: {error}; {fix}"))
        })?;
        let reports = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let (sender, receiver) = mpsc::channel();
        let observer = Observer(child);
        thread::spawn(move || {
            for line in reports.lines().map_while(Result::ok) {
                let Ok(report) = serde_json::from_str::<StallReport>(&line) else {
                    eprintln!("traps: no report: {line}");
                    continue;
                };
                // Once the trial is over, the judge wants it.
                if let Err(unwanted) = sender.send(report) {
                    let report = unwanted.0;
                    output.report(&report);
                    // From outside, a stall begins when it is first proven.
                    let begun_at_the_latest = report.started_at;
                    desk.put(News::Stall(Box::new(report), begun_at_the_latest));
                }
            }
        });
        wait(runtime, receiver)?;
        Ok(observer)
    }
}

/// Blocks a worker again and again until that has been reported to its end.
fn wait(runtime: &Runtime, reports: Receiver<StallReport>) -> Result<(), Failure> {
    for _ in 0..TRIALS {
        let trial = runtime.spawn(async { thread::sleep(TRIAL) });
        runtime.block_on(trial)?;
        let is_over = |report: StallReport| report.phase == tokio_stall::Phase::Ended;
        if reports.recv_timeout(TRIAL).is_ok_and(is_over) || reports.try_iter().any(is_over) {
            // A trial that was under way has its last report, too.
            while reports.recv_timeout(3 * TRIAL).is_ok() {}
            return Ok(());
        }
    }
    Err(Failure::new("`tokio-stall attach` reports nothing"))
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
