//! The threads that drive a runtime's workers, and one sample of each worker a tick.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait. A sample takes atomic loads, `pread` on descriptors that are kept open, and
//! one reading of memory for all workers. `files` opens and closes the descriptors.

use super::files::{OpenFiles, Room};
use crate::clock::{self, AT_ONCE, Nanos};
use crate::detect::{Counters, Sample, SlotSeen};
use crate::os::{self, Call, ThreadEvidence, ThreadState};
use crate::slot::{Claim, Claims, Slot, Thread};
use crate::turns::{Inside, Looks, NoTurns, PollId, Track, Turn};
use std::time::Duration;
use tokio::runtime::RuntimeMetrics;

/// Whether this target's tokio publishes the counters at all.
pub(crate) const COUNTERS_EXIST: bool = cfg!(target_has_atomic = "64");

/// Reads a worker's published counters.
///
/// Observed, not documented, and pinned by `tests/tokio_counters.rs`: both are stored when the
/// worker parks, when it wakes, and every 61 turns of its loop, never during a poll.
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

/// Asks every thread that has driven a worker to renew its claim at its next poll. A thread that
/// takes a worker over from a poll in `block_in_place` may have driven another one before.
pub(crate) fn ask_for_claim() {
    for slot in crate::slot::claimers() {
        if slot.claim().is_some() {
            slot.line.ask_for_claim();
        }
    }
}

/// The thread that drives one worker, as far as is known.
#[derive(Debug)]
pub(crate) struct WorkerThread {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
    claimed_at: Nanos,
    files: OpenFiles,
    evidence: Option<ThreadEvidence>,
    /// The evidence of the look before the last.
    earlier: Option<ThreadEvidence>,
    /// The worker has gone on while this thread did not run, so another thread drives it.
    replaced: bool,
    /// Found by the worker's memory, and not by the thread's claim.
    found: bool,
}

impl WorkerThread {
    fn new(slot: &'static Slot, claimed_at: Nanos) -> WorkerThread {
        WorkerThread {
            slot,
            tenancy: slot.tenancy(),
            claimed_at,
            files: OpenFiles::default(),
            evidence: None,
            earlier: None,
            replaced: false,
            found: false,
        }
    }

    /// Whether the thread has been found since that claim, and still owns its slot.
    fn is_found_since(&self, claimed_at: Option<Nanos>) -> bool {
        let is_later = claimed_at.is_none_or(|at| at <= self.claimed_at);
        self.found && is_later && self.tenancy == self.slot.tenancy()
    }

    /// The slot, and which of its owners.
    pub(crate) fn thread(&self) -> Thread {
        self.slot.thread(self.tenancy)
    }

    /// The slot as it is now.
    fn seen(&self) -> SlotSeen {
        let line = &self.slot.line;
        let seen = line.observe();
        let started = line.started(seen.epoch);
        SlotSeen {
            claimed_at: self.claimed_at,
            thread: self.thread(),
            epoch: seen.epoch,
            started: started.map(|start| start.at),
            task: started.map_or(0, |start| start.task),
            allowed: seen.allowed,
            allowed_until: seen.allowed_until,
            loops: self.slot.loops(),
        }
    }

    fn is(&self, slot: &'static Slot) -> bool {
        std::ptr::eq(self.slot, slot) && self.tenancy == slot.tenancy()
    }

    /// Takes in a claim of the same thread. A newer one makes it the driver again.
    fn renew(&mut self, claimed_at: Nanos) {
        if self.claimed_at != claimed_at {
            self.claimed_at = claimed_at;
            self.replaced = false;
            self.evidence = None;
            self.earlier = None;
        }
    }

    /// Looks at the thread, and decides whether it can still be the driver.
    fn look(&mut self, counters_moved: bool) -> (Option<ThreadEvidence>, Nanos) {
        let (evidence, at) = self.look_at_once();
        self.take(evidence, counters_moved);
        (evidence, at)
    }

    /// Takes in a look. A thread must run to park or to wake the worker.
    ///
    /// The thread is looked at before the counters are read. If the counters have moved between the
    /// last two readings, and the thread has not run since the look before the first of them, then
    /// another thread has moved them.
    fn take(&mut self, evidence: Option<ThreadEvidence>, counters_moved: bool) {
        let before_the_move = std::mem::replace(&mut self.earlier, self.evidence);
        self.evidence = evidence;
        let has_not_run = |(now, then): (ThreadEvidence, ThreadEvidence)| {
            now.runs == then.runs && now.cpu == then.cpu && now.state != ThreadState::OnCpu
        };
        self.replaced |= counters_moved && evidence.zip(before_the_move).is_some_and(has_not_run);
    }

    /// Reads the thread's clocks and the shared clock together. If the watchdog loses its CPU in
    /// between, it reads them again: the time would be blamed on the thread.
    fn look_at_once(&mut self) -> (Option<ThreadEvidence>, Nanos) {
        const TRIES: usize = 3;
        let mut look = (None, clock::now());
        for _ in 0..TRIES {
            let before = look.1;
            look.0 = self.files.look();
            look.1 = clock::now();
            if look.1.since(before) < AT_ONCE {
                break;
            }
        }
        look
    }
}

/// One worker of one runtime, and its driver.
#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    driver: Option<WorkerThread>,
    track: Track,
    turn: Option<Turn>,
    /// The slot's epoch before memory was read.
    epoch: Option<u64>,
    /// The count of parks and unparks before memory was read.
    parks: u64,
    /// When memory was read.
    read_at: Nanos,
    /// At the tick before, the worker was at work, and no known thread drove it.
    was_lost: bool,
    last: Option<Counters>,
    /// The poll that memory showed at the last sample.
    last_turn: Option<PollId>,
    /// Between the last two samples, the worker parked or woke.
    moved: bool,
    /// At the last two samples, and between them, the worker was parked.
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
            last_turn: None,
            moved: false,
            quiet: false,
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The thread that drives this worker, unless it has been replaced by one not yet known.
    pub(crate) fn driver(&self) -> Option<&WorkerThread> {
        self.driver.as_ref().filter(|driver| !driver.replaced)
    }

    /// Takes the newest claim for this worker.
    pub(crate) fn follow(&mut self, runtime: u64, drivers: &Claims) {
        let claim = Claim {
            runtime,
            worker: self.index,
        };
        let newest = drivers.get(&claim);
        let is_found = |driver: &WorkerThread| driver.is_found_since(newest.map(|(_, at)| *at));
        match (newest, &mut self.driver) {
            (_, Some(driver)) if is_found(driver) => {}
            (None, driver) => *driver = None,
            (Some(&(slot, at)), Some(driver)) if driver.is(slot) => driver.renew(at),
            (Some(&(slot, at)), driver) => *driver = Some(WorkerThread::new(slot, at)),
        }
    }

    /// Asks for this worker's words in memory, which are read together with those of others.
    pub(crate) fn ask(&mut self, looks: &mut Looks, metrics: &RuntimeMetrics) {
        self.withdraw();
        self.parks = counters(metrics, self.index).parks;
        self.epoch = None;
        if let Some(driver) = self.driver.as_ref().filter(|driver| !driver.replaced) {
            self.epoch = Some(driver.slot.line.observe().epoch);
            self.track.ask(driver.slot, driver.tenancy, looks);
        }
    }

    /// Takes back what it has asked for.
    pub(crate) fn withdraw(&mut self) {
        self.turn = None;
        self.track.withdraw();
    }

    /// Takes the words that were read. Returns whether another look is needed, since some lie
    /// elsewhere now.
    pub(crate) fn take(&mut self, looks: &Looks, metrics: &RuntimeMetrics) -> bool {
        self.read_at = looks.read_at();
        let published = self.parks..=counters(metrics, self.index).parks;
        let pulses = self.driver.as_ref().map_or(0, |driver| driver.slot.loops());
        let Some(turn) = self.track.take(looks, published, pulses) else {
            return true;
        };
        if self.track.take_stranger() {
            self.driver
                .iter_mut()
                .for_each(|driver| driver.replaced = true);
        }
        // A slot that has a new owner may have been read half before the change and half after it.
        let is_same = |driver: &&WorkerThread| driver.tenancy == driver.slot.tenancy();
        self.turn = turn.filter(|_| self.driver.as_ref().filter(is_same).is_some());
        false
    }

    /// Whether the worker is at work, and not on the thread that is taken to drive it.
    pub(crate) fn is_lost(&mut self, metrics: &RuntimeMetrics) -> bool {
        let is_held = self.turn.is_some_and(|turn| turn.has_core);
        self.was_lost &= !is_held;
        !is_held && counters(metrics, self.index).parks % 2 == 0
    }

    /// Looks for the thread that drives it, among all that have a slot. Returns whether there is
    /// one.
    pub(crate) fn find(&mut self, inside: &Inside, looks: &mut Looks) -> bool {
        let Some(slot) = self.track.find(inside, looks) else {
            // Between two polls no thread shows that it has the worker, so one tick proves nothing.
            let is_elsewhere = self.turn.is_some() && self.was_lost;
            self.was_lost = self.turn.is_some();
            if let Some(driver) = self.driver.as_mut().filter(|_| is_elsewhere) {
                driver.replaced = true;
            }
            return false;
        };
        self.was_lost = false;
        self.driver = Some(WorkerThread {
            found: true,
            ..WorkerThread::new(slot, clock::now())
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

    /// The call in which the thread of a parked worker sleeps.
    pub(crate) fn parked_at(&self) -> Option<Call> {
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
        room: &Room,
    ) -> Sample {
        let (parks, epoch) = (self.parks, self.epoch);
        let mark = self.mark();
        let (thread, clock, at) = self.look_at_thread(metrics, room);
        let before = counters(metrics, self.index);
        let slot = self.driver().map(WorkerThread::seen);
        let after = counters(metrics, self.index);
        let last = self.last.replace(after);
        self.moved = last.is_some_and(|last| last.parks != after.parks);
        self.quiet = after.parks % 2 == 1 && last == Some(after);
        let turn = self.turn.filter(|_| slot.is_some());
        self.last_turn = turn.map(|turn| turn.id);
        let is_same = |mark: Option<u64>| slot.is_none_or(|slot| mark == Some(slot.epoch));
        // Words that were read from a parked worker may look like those of its next poll.
        let is_of_the_turn = is_same(epoch) && parks == after.parks;
        let still = turn.is_none() || self.is_still(looks, metrics, at);
        // A mark is of the thread as it was looked at if it stood before that, too.
        let settled = still && is_same(mark) && (turn.is_none() || is_of_the_turn);
        Sample {
            at,
            // The process may have been stopped since the tick woke; so lateness is taken here.
            late: at.since(due),
            usually_late: Duration::ZERO,
            before,
            after,
            turn,
            settled,
            still,
            slot,
            thread,
            clock,
            blind: self
                .driver()
                .is_some_and(|driver| driver.files.are_missed()),
            own_wait: None,
            preempted: false,
            signalled: false,
            unanswered: false,
            throttled: Duration::ZERO,
        }
    }

    /// The epoch of the driver's slot.
    fn mark(&self) -> Option<u64> {
        let driver = self.driver()?;
        Some(driver.slot.line.observe().epoch)
    }

    /// The CPU time of the thread that drives the worker.
    fn cpu_time(&self) -> Option<Duration> {
        let driver = self.driver()?;
        let clock = os::cpu_clock(driver.slot.tid());
        clock.filter(|_| driver.tenancy == driver.slot.tenancy())
    }

    /// Whether nothing can have happened to the worker since the last sample: it was parked then
    /// and at the one before, and has not woken since.
    pub(crate) fn rests(&self, metrics: &RuntimeMetrics) -> bool {
        self.quiet && self.last == Some(counters(metrics, self.index))
    }

    /// Looks at the thread, or only at its CPU time if it is hidden, and then at the clock. A
    /// worker that was parked all the time needs no second look.
    fn look_at_thread(
        &mut self,
        metrics: &RuntimeMetrics,
        room: &Room,
    ) -> (Option<ThreadEvidence>, Option<Duration>, Nanos) {
        let (quiet, moved) = (self.rests(metrics), self.moved);
        let is_held = self.seems_held(metrics);
        let Some(driver) = self.driver.as_mut().filter(|driver| !driver.replaced) else {
            return (None, None, clock::now());
        };
        if quiet && driver.evidence.is_some() {
            driver.earlier = driver.evidence;
            return (driver.evidence, None, clock::now());
        }
        driver
            .files
            .prepare(driver.slot, driver.tenancy, room, is_held);
        match driver.look(moved) {
            (None, _) => (None, self.cpu_time(), clock::now()),
            (evidence, at) => (evidence, None, at),
        }
    }

    /// Whether the worker is at work, and nothing shows that it has gone on since the last sample.
    fn seems_held(&self, metrics: &RuntimeMetrics) -> bool {
        let now = counters(metrics, self.index);
        let has_turned = self.turn.map(|turn| turn.id) != self.last_turn;
        !now.is_parked() && self.last == Some(now) && !has_turned
    }

    /// Notes that the worker rests: it needs no files until it is active again.
    pub(crate) fn rest(&mut self, room: &Room) {
        if let Some(driver) = &mut self.driver {
            driver.files.rest(room);
        }
    }

    /// Whether the poll that memory showed still goes on. Memory is read again if the watchdog has
    /// lost its CPU between that reading and the look at the thread.
    fn is_still(&mut self, looks: &mut Looks, metrics: &RuntimeMetrics, at: Nanos) -> bool {
        let then = self.turn.map(|turn| (turn.id, turn.has_core));
        if at.since(self.read_at) < AT_ONCE {
            return true;
        }
        looks.clear();
        self.ask(looks, metrics);
        looks.read();
        let is_read = !self.take(looks, metrics);
        is_read && self.turn.map(|turn| (turn.id, turn.has_core)) == then
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::slot;

    fn driver() -> WorkerThread {
        slot::enrol();
        WorkerThread::new(slot::mine().expect("a slot"), clock::now())
    }

    fn evidence(runs: u64, state: ThreadState) -> Option<ThreadEvidence> {
        Some(ThreadEvidence {
            cpu: Duration::from_millis(runs),
            run_queue: Duration::ZERO,
            runs,
            state,
        })
    }

    /// Takes in looks, each with whether the counters had moved between the two readings before it.
    fn is_replaced(looks: &[(Option<ThreadEvidence>, bool)]) -> bool {
        let mut driver = driver();
        for (evidence, counters_moved) in looks {
            driver.take(*evidence, *counters_moved);
        }
        driver.replaced
    }

    #[test]
    fn a_thread_that_has_not_run_cannot_have_moved_the_counters() {
        let asleep = evidence(7, ThreadState::Asleep(None));
        assert!(is_replaced(&[
            (asleep, false),
            (asleep, false),
            (asleep, true)
        ]));
        assert!(!is_replaced(&[(asleep, false); 3]));
    }

    #[test]
    fn a_thread_that_may_have_run_remains_the_driver() {
        let asleep = |runs| evidence(runs, ThreadState::Asleep(None));
        let on_cpu = evidence(7, ThreadState::OnCpu);
        for now in [asleep(8), on_cpu, None] {
            assert!(!is_replaced(&[
                (asleep(7), false),
                (asleep(7), false),
                (now, true)
            ]));
        }
        // It ran between the look before the first reading and the look before the second.
        assert!(!is_replaced(&[
            (asleep(6), false),
            (asleep(7), false),
            (asleep(7), true)
        ]));
        // A single look proves nothing.
        assert!(!is_replaced(&[(asleep(7), false), (asleep(7), true)]));
    }

    #[test]
    fn a_new_claim_makes_a_thread_the_driver_again() {
        let asleep = evidence(7, ThreadState::Asleep(None));
        let mut driver = driver();
        for moved in [false, false, true] {
            driver.take(asleep, moved);
        }
        driver.renew(driver.claimed_at);
        assert!(driver.replaced);
        driver.renew(driver.claimed_at.plus(Duration::from_millis(1)));
        assert!(!driver.replaced);
        driver.take(asleep, true);
        assert!(!driver.replaced);
    }
}
