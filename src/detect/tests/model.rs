//! The detector against simple models, with random lives of a worker.

use super::*;
use proptest::prelude::*;

/// A piece of a poll, in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Compute(u64),
    Sleep(u64),
    Starve(u64),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (1..8u64).prop_map(Piece::Compute),
        (1..8u64).prop_map(Piece::Sleep),
        (1..30u64).prop_map(Piece::Starve),
    ]
}

/// The next thing that a worker does, in microseconds.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A poll that computes and then sleeps, from the queue or from the "next" slot.
    Poll {
        computing: u64,
        asleep: u64,
        next: bool,
    },
    Park(u64),
    /// The poll is in `block_in_place`, while another thread makes turns.
    Left(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let poll = |longest: u64| {
        (0..longest, 0..longest, any::<bool>()).prop_map(|(computing, asleep, next)| Step::Poll {
            computing,
            asleep,
            next,
        })
    };
    prop_oneof![
        8 => poll(400),
        6 => poll(5_000),
        3 => poll(9_000),
        1 => (100..30_000u64).prop_map(Step::Park),
        1 => (100..60_000u64).prop_map(Step::Left),
    ]
}

/// A tick is late by less than this, in microseconds.
const LATEST_TICK: u64 = 150;

/// One step, played: its times, the turn in memory meanwhile, and the thread's clocks at its begin.
struct Played {
    from: u64,
    to: u64,
    turn: Turn,
    parks: u64,
    computing: u64,
    is_poll: bool,
    cpu: u64,
    runs: u64,
    busy: u64,
}

/// Plays the steps as tokio would: tasks A and B alternate in one turn of the loop, for at most
/// four polls.
fn play(steps: &[Step]) -> Vec<Played> {
    let (mut now, mut turn, mut nth, mut parks, mut cpu, mut runs, mut busy) =
        (0, 0, 0, 2, 0, 0, 0);
    let mut after_park = None;
    let mut played = Vec::new();
    for step in steps {
        let (length, computing, is_poll, holds) = match *step {
            Step::Poll {
                computing, asleep, ..
            } => (computing + asleep, computing, true, true),
            Step::Park(length) => (length, 0, false, true),
            Step::Left(length) => (length, 0, false, false),
        };
        let is_next = matches!(step, Step::Poll { next: true, .. });
        let goes_on = is_next && nth < 3 && played.last().is_some_and(|last: &Played| last.is_poll);
        nth = if goes_on { nth + 1 } else { 0 };
        turn += u32::from(!goes_on);
        if let Step::Park(_) = step {
            parks += 1;
        }
        let first = is_poll && after_park == Some(turn - u32::from(nth == 0)) && nth == 0;
        let stage = [Stage::Queue, Stage::Next, Stage::Next, Stage::Last][nth as usize];
        let task = if is_poll { 1 + nth % 2 } else { 0 };
        played.push(Played {
            from: now,
            to: now + length,
            turn: Turn {
                id: PollId {
                    turn,
                    stage,
                    task: match stage {
                        Stage::Next => task,
                        _ => u64::from(task != 0),
                    },
                    resumed: (0, 0),
                },
                task,
                has_core: holds,
                resumed: None,
                begun: first.then(|| micros(now)),
            },
            parks,
            computing,
            is_poll,
            cpu,
            runs,
            busy,
        });
        now += length;
        cpu += computing;
        runs += 2;
        match step {
            Step::Park(_) => {
                parks += 1;
                busy = now;
                after_park = Some(turn);
            }
            Step::Left(length) => {
                // The other thread has made turns, and the worker is the first thread's again.
                turn += 1 + (*length / 1_000) as u32;
                after_park = None;
            }
            Step::Poll { .. } => after_park = after_park.filter(|parked| *parked + 1 > turn),
        }
    }
    played
}

fn micros(at: u64) -> Nanos {
    Nanos(1_000_000_000 + at * 1_000)
}

/// The sample of a look at this moment.
fn seen(step: &Played, now: u64) -> Sample {
    let into = now - step.from;
    let is_computing = into < step.computing;
    let counters = Counters {
        parks: step.parks,
        busy: Duration::from_micros(step.busy),
    };
    Sample {
        at: micros(now),
        late: Duration::ZERO,
        usually_late: Duration::ZERO,
        own_wait: None,
        clock: None,
        preempted: false,
        before: counters,
        after: counters,
        slot: World::parked().slot,
        turn: Some(step.turn),
        settled: true,
        still: true,
        thread: Some(ThreadEvidence {
            cpu: Duration::from_micros(step.cpu + into.min(step.computing)),
            run_queue: Duration::ZERO,
            runs: step.runs + u64::from(!is_computing),
            state: if is_computing {
                ThreadState::OnCpu
            } else {
                ThreadState::Asleep(Some(CALL))
            },
        }),
        signalled: false,
        unanswered: false,
        blind: false,
        throttled: Duration::ZERO,
    }
}

proptest! {
    /// Without marks, by turns (D20, D63): there is no verdict without a poll of the threshold, and
    /// no poll of 1.25 thresholds without a certain verdict. Lives and ticks are random. A poll may
    /// end before a tick that is late.
    #[test]
    fn an_unmarked_poll_is_a_stall_if_it_is_long(
        steps in prop::collection::vec(step(), 1..200),
        jitter in prop::collection::vec(0..LATEST_TICK, 64),
    ) {
        let tick = THRESHOLD / 4;
        let mut detector = Detector::new(Rules { tick, ..rules() });
        let played = play(&steps);
        let end = played.last().map_or(0, |step| step.to);
        let mut verdicts = Vec::new();
        let due = (0..end / 2_500).zip(jitter.iter().cycle());
        for (nth, jitter) in due {
            let now = nth * 2_500 + jitter;
            let Some(step) = played.iter().find(|step| (step.from..step.to).contains(&now)) else {
                continue;
            };
            for finding in detector.observe(&Look {
                sample: seen(step, now),
                records: Vec::new(),
                stacks: Vec::new(),
                is_explaining: false,
            }) {
                match finding {
                    Finding::Began(stall) | Finding::Ongoing(stall) => verdicts.push((now, stall)),
                    Finding::Ended(stall) => verdicts.push((now - 2_500, stall)),
                    Finding::Suspect(_) => {}
                }
            }
        }
        let polls = || played.iter().filter(|step| step.is_poll);
        // The threshold, less the eighth of a tick that is forgiven (D85).
        let shortest = 10_000 - 2_500 / 8;
        // Up to four polls of one turn are counted out together (D25).
        let turn_of = |turn: u32| polls().filter(move |step| step.turn.id.turn == turn);
        for (at, stall) in &verdicts {
            let during = polls().filter(|step| step.from <= *at && micros(step.to) >= stall.since);
            let mut longest = during.map(|step| {
                let turn: u64 = turn_of(step.turn.id.turn).map(|step| step.to - step.from).sum();
                (step.to - step.from).max(turn / 4)
            });
            prop_assert!(longest.any(|longest| longest >= shortest), "{stall:?} at {at}");
        }
        let certain = 12_500 + LATEST_TICK;
        let is_long = |step: &&Played| step.to - step.from >= certain && step.to <= end - 5_000;
        for poll in polls().filter(is_long) {
            let is_found = verdicts.iter().any(|(at, stall)| {
                let is_certain = stall.certainty == Certainty::Certain;
                is_certain && *at >= poll.from && stall.since <= micros(poll.to)
            });
            prop_assert!(is_found, "{} to {}", poll.from, poll.to);
        }
    }

    /// The obvious model: a timed poll is a stall if its own time, without its waits for a CPU,
    /// reaches the threshold. With a look at every millisecond the detector is never early. It is
    /// late by at most a tick for each wait, whose end is only known to within a tick.
    #[test]
    fn a_poll_is_a_stall_if_its_own_time_reaches_the_threshold(
        pieces in prop::collection::vec(piece(), 1..12),
    ) {
        let mut world = World::parked().wake();
        world.compute(ms(1));
        world.begin_poll(Some(at(1)));
        let (mut own, mut waits, mut age) = (0, 0, 0);
        let mut reported = false;
        for piece in pieces {
            let (length, of_its_own): (u64, bool) = match piece {
                Piece::Compute(length) | Piece::Sleep(length) => (length, true),
                Piece::Starve(length) => (length, false),
            };
            for _ in 0..length {
                age += 1;
                own += u64::from(of_its_own);
                let found = match piece {
                    Piece::Compute(_) => world.compute(ms(1)),
                    Piece::Sleep(_) => world.sleep(ms(1)),
                    Piece::Starve(_) => world.starve(ms(1)),
                };
                if let Some(stall) = began(&found) {
                    reported = true;
                    prop_assert_eq!(stall.split.total(), ms(age), "the parts add up");
                }
                prop_assert!(!reported || own >= 10, "too early, after {} ms of its own", own);
                // A quarter of the threshold more, if the host has taken much (D84).
                prop_assert!(reported || own < 13 + waits, "too late, after {} ms of its own", own);
            }
            if let Piece::Starve(length) = piece {
                waits += 1;
                world.thread.as_mut().unwrap().run_queue += ms(length);
            }
        }
    }

    /// A stall that has begun ends before the next one begins, in all lives of a worker.
    #[test]
    fn beginnings_and_ends_alternate(steps in prop::collection::vec(0..7u8, 1..400)) {
        let mut world = World::parked().wake();
        let mut open = false;
        for step in steps {
            let found = match step {
                0 => { world.begin_poll(None); world.compute(TICK) }
                1 => { world.end_poll(None); world.compute(TICK) }
                2 => world.sleep(TICK),
                3 => { world.publish(TICK); world.compute(TICK) }
                4 => { world.park(); world.sleep(TICK) }
                5 => world.sleep(TICK * 3),
                _ => world.compute(TICK),
            };
            for finding in found {
                match finding {
                    Finding::Began(_) => { prop_assert!(!open); open = true; }
                    Finding::Ongoing(_) => prop_assert!(open),
                    Finding::Ended(stall) => {
                        prop_assert!(open || stall.duration >= THRESHOLD);
                        open = false;
                    }
                    Finding::Suspect(_) => {}
                }
            }
        }
    }
}
