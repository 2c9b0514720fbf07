//! Runs one entry after another, and holds what was reported against what really happened.

use crate::client::Client;
use crate::corpus::{Detector, Drive, Entry, Kind, Over};
use crate::failure::Failure;
use crate::outcome::{Outcome, Summary, is_of_trap};
use crate::output::Output;
use crate::record::Blocked;
use crate::sightings::{Sighting, Sightings};
use crate::traps::logging;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

/// For first requests, which are slower than any other; reports about them count as false alarms.
const WARM_UP: Duration = Duration::from_millis(300);

/// The note of something that is not coming, so that a mistake here does not hang the program.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a short stall is run at most.
const TRIES: usize = 3;

#[derive(Debug)]
pub(crate) struct Judge {
    client: Client,
    sightings: Sightings,
    records: UnboundedReceiver<Blocked>,
    output: Output,
    /// Reports about a time when nothing was run.
    strays: Vec<Sighting>,
    /// How often a short stall was run once more.
    again: usize,
}

impl Judge {
    pub(crate) fn new(
        client: Client,
        sightings: Sightings,
        records: UnboundedReceiver<Blocked>,
        output: Output,
    ) -> Judge {
        Judge {
            client,
            sightings,
            records,
            output,
            strays: Vec::new(),
            again: 0,
        }
    }

    /// Runs everything, on a runtime of the calling thread's own.
    pub(crate) fn run(mut self, entries: Vec<Entry>) -> Result<Summary, Failure> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(self.judge_all(entries))
    }

    async fn judge_all(&mut self, entries: Vec<Entry>) -> Result<Summary, Failure> {
        self.client.start_traffic();
        self.sightings.settle(Instant::now() + WARM_UP, None).await;

        let mut outcomes = Vec::new();
        self.rehearse(&entries).await?;
        for entry in entries {
            self.strays.extend(self.sightings.take());
            self.output.begins(&entry);
            let outcome = self.judge_fairly(entry).await?;
            self.output.judged(&outcome);
            outcomes.push(outcome);
        }
        let summary = Summary::new(&outcomes, &self.strays, self.again);
        self.output.closes(&outcomes, &self.strays, &summary);
        Ok(summary)
    }

    /// Runs everything once without a judgement, for the observer outside: when it meets a place for
    /// the first time, it reads its debug information, and a short stall is over by then. The stuck
    /// log is stuck only once.
    async fn rehearse(&mut self, entries: &[Entry]) -> Result<(), Failure> {
        for entry in entries {
            let is_seen_from_outside = entry.detector == Detector::Outside;
            if is_seen_from_outside && entry.trap != Some(logging::TRAP.name) {
                self.judge(entry.clone()).await?;
            }
        }
        self.strays.clear();
        Ok(())
    }

    /// Runs an entry, and once or twice more if it is a short stall that was not caught. On a machine
    /// with more to do than CPUs, the watchdog may have none for as long as such a stall lasts.
    async fn judge_fairly(&mut self, entry: Entry) -> Result<Outcome, Failure> {
        let mut outcome = self.judge(entry.clone()).await?;
        for _ in 1..TRIES {
            if !outcome.is_short_and_not_caught() {
                break;
            }
            self.again += 1;
            self.strays.append(&mut outcome.false_alarms);
            outcome = self.judge(entry.clone()).await?;
        }
        Ok(outcome)
    }

    async fn judge(&mut self, entry: Entry) -> Result<Outcome, Failure> {
        let opened = Instant::now();
        match entry.drive {
            Drive::Once => self.client.get(&format!("/{}", entry.name)).await?,
            Drive::OnceInARush => {
                let path = format!("/{}", entry.name);
                self.client.get_in_a_rush(&path).await?;
            }
            Drive::Saturate => self.client.saturate().await?,
        }
        let truth = match entry.over {
            Over::WhenAnswered => None,
            Over::WhenRecorded => timeout(PATIENCE, self.records.recv()).await?,
        };
        let over = truth.map_or_else(Instant::now, |blocked| blocked.until);
        // Not before the answer has been read either: that, too, is work for the server.
        let is_of_trap = |sighting: &Sighting| is_of_trap(sighting, &entry);
        let due: Option<&dyn Fn(&Sighting) -> bool> = match entry.kind {
            Kind::Trap => Some(&is_of_trap),
            Kind::Twin | Kind::Control => None,
        };
        self.sightings.settle(over.max(Instant::now()), due).await;

        let (sightings, strays) = self
            .sightings
            .take()
            .into_iter()
            .partition(|sighting| sighting.began >= opened);
        self.strays.extend::<Vec<_>>(strays);
        Ok(Outcome::new(entry, truth, sightings))
    }
}
