//! Which threads drive a runtime's workers, and one sample of each worker a tick.
//!
//! *Runs on:* the watchdog thread; `collect_drivers` also on whoever wants all workers' stacks.
//! *Must not:* wait. Atomic loads, `pread` on kept descriptors, and one reading of memory for all workers.
//! Descriptors are opened when a worker's thread becomes known, and closed when it is another.

use crate::clock::{self, Nanos};
use crate::detect::{Counters, Sample, SlotSeen};
use crate::os::{Call, ThreadEvidence, ThreadFiles, ThreadState, waits_for_events};
use crate::slot::{Claim, Drivers, Slot};
use crate::turns::{Inside, Looks, NoTurns, Track, Turn};
use std::time::Duration;
use tokio::runtime::RuntimeMetrics;

/// Whether this target's tokio publishes the counters at all.
pub(crate) const COUNTERS_EXIST: bool = cfg!(target_has_atomic = "64");

/// Reads a worker's published counters.
///
/// Observed, not documented, and pinned by `tests/tokio_counters.rs`: both are stored when the worker
/// parks, when it wakes, and every 61 turns of its loop, never during a poll.
#[cfg(target_has_atomic = "64")]
fn counters(metrics: &RuntimeMetrics, worker: usize) -> Counters {
    Counters {
        busy: metrics.worker_total_busy_duration(worker),
        parks: metrics.worker_park_unpark_count(worker),
    }
}

#[cfg(not(target_has_atomic = "64"))]
fn counters(_: &RuntimeMetrics, _: usize) -> Counters {
    Counters {
        parks: 1,
        busy: Duration::ZERO,
    }
}

/// Readings that are no further apart belong together.
const AT_ONCE: Duration = Duration::from_micros(200);

/// Asks every thread that has driven a worker to say at its next poll which one it drives now: who takes a
/// worker over from a poll in `block_in_place` may have driven another one before.
pub(crate) fn ask_for_claim() {
    for slot in crate::slot::all() {
        if slot.claim().is_some() {
            slot.line.ask_for_claim();
        }
    }
}

/// The thread that drives one worker, as far as is known.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
    claimed_at: Nanos,
    files: Option<ThreadFiles>,
    evidence: Option<ThreadEvidence>,
    /// The one before.
    earlier: Option<ThreadEvidence>,
    /// The worker goes on while this thread does not run: it drives it no more.
    replaced: bool,
    /// Found by what it has in its hands, not by what it says.
    found: bool,
}

impl Driver {
    fn new(slot: &'static Slot, claimed_at: Nanos) -> Driver {
        Driver {
            slot,
            tenancy: slot.tenancy(),
            claimed_at,
            files: ThreadFiles::open(slot.tid()),
            evidence: None,
            earlier: None,
            replaced: false,
            found: false,
        }
    }

    /// Whether it has been found more lately than that, and is still there.
    fn is_found_since(&self, claimed_at: Option<Nanos>) -> bool {
        let is_later = claimed_at.is_none_or(|at| at <= self.claimed_at);
        self.found && is_later && self.tenancy == self.slot.tenancy()
    }

    /// Which slot and which of its owners.
    pub(crate) fn thread(&self) -> (usize, u64) {
        (std::ptr::from_ref(self.slot).addr(), self.tenancy)
    }

    fn is(&self, slot: &'static Slot) -> bool {
        std::ptr::eq(self.slot, slot) && self.tenancy == slot.tenancy()
    }

    /// A claim made again is a claim.
    fn renew(&mut self, claimed_at: Nanos) {
        if self.claimed_at != claimed_at {
            self.claimed_at = claimed_at;
            self.replaced = false;
            self.evidence = None;
            self.earlier = None;
        }
    }

    /// Looks at the thread, and whether it can be the one that has parked or woken the worker: to do that
    /// takes running.
    ///
    /// Each look comes before the counters are read. What moved them between the last two readings was
    /// done after the look before the first reading and before this look, or this thread did not do it.
    fn look(&mut self, counters_moved: bool) -> (Option<ThreadEvidence>, Nanos) {
        let before_the_move = std::mem::replace(&mut self.earlier, self.evidence);
        let at = self.look_at_once();
        let has_not_run = |now: ThreadEvidence, then: ThreadEvidence| {
            now.runs == then.runs && now.cpu == then.cpu && now.state != ThreadState::OnCpu
        };
        let stands = self.evidence.zip(before_the_move);
        self.replaced |= counters_moved && stands.is_some_and(|(now, then)| has_not_run(now, then));
        (self.evidence, at)
    }

    /// Reads the thread's clocks and the shared one together: where the watchdog loses its CPU in between, the time
    /// would be blamed on the thread.
    fn look_at_once(&mut self) -> Nanos {
        const TRIES: usize = 3;
        let mut at = clock::now();
        for _ in 0..TRIES {
            let before = at;
            self.evidence = self.files.as_ref().and_then(ThreadFiles::look);
            at = clock::now();
            if at.since(before) < AT_ONCE {
                break;
            }
        }
        at
    }
}

/// One worker of one runtime, and its driver.
#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    driver: Option<Driver>,
    track: Track,
    turn: Option<Turn>,
    /// The slot's epoch before memory was read …
    epoch: Option<u64>,
    /// … and how often the worker had parked and woken.
    parks: u64,
    /// When it was read.
    read_at: Nanos,
    /// At the tick before, it was at work, and in nobody's hands that are known.
    was_lost: bool,
    last: Option<Counters>,
    /// What the last sample showed: the worker had parked or woken since the one before …
    moved: bool,
    /// … or it was parked and had been.
    quiet: bool,
}

impl Worker {
    pub(crate) fn new(index: usize, track: Track) -> Worker {
        Worker {
            index,
            driver: None,
            track,
            turn: None,
            epoch: None,
            parks: 0,
            read_at: Nanos::default(),
            was_lost: false,
            last: None,
            moved: false,
            quiet: false,
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The thread that drives this worker, unless it has been replaced by one not yet known.
    pub(crate) fn driver(&self) -> Option<&Driver> {
        self.driver.as_ref().filter(|driver| !driver.replaced)
    }

    /// Takes the newest claim for this worker.
    pub(crate) fn follow(&mut self, runtime: u64, drivers: &Drivers) {
        let claim = Claim {
            runtime,
            worker: self.index,
        };
        let newest = drivers.get(&claim);
        let is_found = |driver: &Driver| driver.is_found_since(newest.map(|(_, at)| *at));
        match (newest, &mut self.driver) {
            (_, Some(driver)) if is_found(driver) => {}
            (None, driver) => *driver = None,
            (Some(&(slot, at)), Some(driver)) if driver.is(slot) => driver.renew(at),
            (Some(&(slot, at)), driver) => *driver = Some(Driver::new(slot, at)),
        }
    }

    /// Asks for what is to be read of this worker, together with what is read of others.
    pub(crate) fn ask(&mut self, looks: &mut Looks, metrics: &RuntimeMetrics) {
        self.turn = None;
        self.parks = counters(metrics, self.index).parks;
        self.epoch = None;
        if let Some(driver) = self.driver.as_ref().filter(|driver| !driver.replaced) {
            self.epoch = Some(driver.slot.line.observe().epoch);
            self.track.ask(driver.slot, driver.tenancy, looks);
        }
    }

    /// Takes what was read. Returns whether another look is wanted, since something lies elsewhere now.
    pub(crate) fn take(&mut self, looks: &Looks, metrics: &RuntimeMetrics) -> bool {
        self.read_at = looks.read_at();
        let published = self.parks..=counters(metrics, self.index).parks;
        let Some(turn) = self.track.take(looks, published) else {
            return true;
        };
        // A slot that has another owner now may have been read half before and half after.
        let is_same = |driver: &&Driver| driver.tenancy == driver.slot.tenancy();
        self.turn = turn.filter(|_| self.driver.as_ref().filter(is_same).is_some());
        false
    }

    /// Whether the worker is at work, in other hands than those of the thread that is taken to drive it.
    pub(crate) fn is_lost(&mut self, metrics: &RuntimeMetrics) -> bool {
        let is_held = self.turn.is_some_and(|turn| turn.holds);
        self.was_lost &= !is_held;
        !is_held && counters(metrics, self.index).parks % 2 == 0
    }

    /// Looks for the thread that has it in its hands, among all that have a slot. Returns whether there is one.
    pub(crate) fn find(&mut self, inside: &Inside, looks: &mut Looks) -> bool {
        let Some(slot) = self.track.find(inside, looks) else {
            // Between two polls it is in nobody's hands.
            let is_elsewhere = self.turn.is_some() && self.was_lost;
            self.was_lost = self.turn.is_some();
            if let Some(driver) = self.driver.as_mut().filter(|_| is_elsewhere) {
                driver.replaced = true;
            }
            return false;
        };
        self.was_lost = false;
        self.driver = Some(Driver {
            found: true,
            ..Driver::new(slot, clock::now())
        });
        true
    }

    /// Why this worker's turns are not counted, or not yet.
    pub(crate) fn no_turns(&self) -> Option<NoTurns> {
        self.track.missing()
    }

    /// The turns counted so far.
    pub(crate) fn turns(&self) -> u64 {
        self.track.counted()
    }

    /// Whether the worker is parked, and its thread asleep where the kernel wakes it for sockets and timers.
    pub(crate) fn waits_in_driver(&self) -> bool {
        self.parked_at()
            .is_some_and(|call| waits_for_events(call.number))
    }

    /// Whether the worker is parked, and its thread asleep.
    pub(crate) fn sleeps_parked(&self) -> bool {
        self.parked_at().is_some()
    }

    fn parked_at(&self) -> Option<Call> {
        let evidence = self.driver()?.evidence?;
        match evidence.state {
            ThreadState::Asleep(call) if self.last?.parks % 2 == 1 => call,
            _ => None,
        }
    }

    /// Looks at the worker now.
    ///
    /// # Cost
    ///
    /// Some cached loads for a parked worker; one to two microseconds for an active one.
    pub(crate) fn sample(
        &mut self,
        metrics: &RuntimeMetrics,
        due: Nanos,
        looks: &mut Looks,
    ) -> Sample {
        let (thread, at) = self.look_at_thread(metrics);
        let before = counters(metrics, self.index);
        let slot = self.driver().map(|driver| {
            let line = &driver.slot.line;
            let seen = line.observe();
            SlotSeen {
                thread: driver.thread(),
                epoch: seen.epoch,
                started: line.started(seen.epoch),
                allowed: seen.allowed,
                allowed_until: seen.allowed_until,
                loops: driver.slot.loops(),
            }
        });
        let after = counters(metrics, self.index);
        let last = self.last.replace(after);
        self.moved = last.is_some_and(|last| last.parks != after.parks);
        self.quiet = after.parks % 2 == 1 && last == Some(after);
        let turn = self.turn.filter(|_| slot.is_some());
        let same_mark = slot.is_none_or(|slot| self.epoch == Some(slot.epoch));
        let settled = turn.is_none() || same_mark && self.is_still(looks, metrics, at);
        Sample {
            at,
            // The process may have been stopped since the tick woke; so lateness is taken here.
            late: at.since(due),
            before,
            after,
            turn,
            settled,
            slot,
            thread,
            own_wait: None,
            signalled: false,
            throttled: Duration::ZERO,
        }
    }

    /// Whether nothing can have happened to the worker since the last sample: it was parked then and at the one
    /// before, and has not woken since.
    pub(crate) fn rests(&self, metrics: &RuntimeMetrics) -> bool {
        self.quiet && self.last == Some(counters(metrics, self.index))
    }

    /// What the thread did, and when. A worker that was parked all the time needs no second look.
    fn look_at_thread(&mut self, metrics: &RuntimeMetrics) -> (Option<ThreadEvidence>, Nanos) {
        let (quiet, moved) = (self.rests(metrics), self.moved);
        let Some(driver) = self.driver.as_mut().filter(|driver| !driver.replaced) else {
            return (None, clock::now());
        };
        if quiet && driver.evidence.is_some() {
            driver.earlier = driver.evidence;
            return (driver.evidence, clock::now());
        }
        driver.look(moved)
    }

    /// Whether the poll that memory showed still goes on, asked again where the watchdog has lost its CPU
    /// between that reading and the look at the thread.
    fn is_still(&mut self, looks: &mut Looks, metrics: &RuntimeMetrics, at: Nanos) -> bool {
        let then = self.turn.map(|turn| (turn.id, turn.holds));
        if at.since(self.read_at) < AT_ONCE {
            return true;
        }
        looks.clear();
        self.ask(looks, metrics);
        looks.read();
        let is_read = !self.take(looks, metrics);
        is_read && self.turn.map(|turn| (turn.id, turn.holds)) == then
    }
}
