//! Marked polls: certain, as exact as their stamps, and nothing to report once they have left their worker.

use super::*;

#[test]
fn a_timed_poll_is_a_stall_at_the_threshold_and_not_before() {
    let mut world = World::polling_since(5);
    assert_eq!(world.compute(ms(5)), []);
    assert_eq!(world.compute(ms(4)), []);
    let stall = began(&world.compute(ms(1))).expect("10 ms are reached");
    assert_eq!(stall.certainty, Certainty::Certain);
    assert_eq!((stall.duration, stall.error), (ms(10), Duration::ZERO));
}

#[test]
fn an_untimed_poll_is_certain_once_its_shortest_length_reaches_the_threshold() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    world.begin_poll(None);
    assert_eq!(world.compute(ms(5)), []);
    assert_eq!(world.compute(ms(5)), []);
    let stall = began(&world.compute(ms(5))).unwrap();
    assert_eq!(
        stall.error,
        Duration::from_micros(2_500),
        "it began somewhere within one tick"
    );
    assert_eq!(stall.duration, Duration::from_micros(12_500));
}

#[test]
fn two_ticks_a_little_close_together_are_a_threshold_where_the_start_is_not_known() {
    // The world's clock goes in whole milliseconds, so everything is a hundred times as long.
    let long = |ticks: [u64; 2], started: Option<Nanos>| {
        let mut world = World::parked().wake();
        world.detector = Detector::new(Rules {
            threshold: THRESHOLD * 100,
            tick: TICK * 100,
            ..rules()
        });
        world.compute(ms(500));
        world.begin_poll(started);
        world.compute(ms(500));
        let mut findings = world.compute(ms(ticks[0]));
        findings.extend(world.compute(ms(ticks[1])));
        began(&findings).is_some()
    };
    assert!(long([495, 497], None));
    assert!(!long([480, 480], None));
    assert!(
        !long([199, 300], Some(at(501))),
        "a start that is known is exact"
    );
    assert!(long([200, 301], Some(at(501))));
}

#[test]
fn a_sleep_that_began_before_the_first_look_counts_from_its_beginning() {
    let first_looks = |runs: u64| {
        let mut world = World::parked().wake();
        world.compute(ms(5));
        world.begin_poll(None);
        world.thread.as_mut().unwrap().runs += runs;
        assert_eq!(world.fall_asleep(ms(1), ms(4)), []);
        assert_eq!(world.pass(ms(5)), []);
        let poll = world.slot().poll();
        world.end_poll(Some(at(17)));
        world.publish(ms(17));
        world.ends = [Some((poll, at(17))), None];
        let now = world.compute(ms(5));
        world.publish(ms(5));
        (now, world.compute(ms(5)))
    };
    let (now, next) = first_looks(0);
    let stall = ended(&now)
        .or_else(|| ended(&next))
        .expect("11 ms asleep for sure");
    assert_eq!(stall.certainty, Certainty::Certain);
    // Where it has been put on a CPU in between, it may have slept twice, the first time in another poll.
    let (now, next) = first_looks(1);
    assert_eq!((now, next), (Findings::new(), Findings::new()));
}

#[test]
fn a_stall_is_announced_again_at_doubling_ages_and_milestones_and_closed_exactly() {
    let mut world = World::polling_since(5);
    let mut announced = Vec::new();
    for _ in 0..20 {
        announced.extend(world.compute(TICK));
    }
    let ages: Vec<_> = announced
        .iter()
        .map(|finding| match finding {
            Finding::Began(stall) | Finding::Ongoing(stall) => stall.duration,
            other => panic!("{other:?} while it lasts"),
        })
        .collect();
    assert_eq!(ages, [ms(10), ms(20), ms(40), ms(60), ms(80)]);
    world.end_poll(Some(at(107)));
    let stall = ended(&world.compute(TICK)).unwrap();
    assert_eq!((stall.duration, stall.error), (ms(102), Duration::ZERO));
}

#[test]
fn an_end_that_is_measured_late_is_still_exact() {
    let stalled = || {
        let mut world = World::polling_since(5);
        let poll = world.slot().poll();
        while began(&world.compute(TICK)).is_none() {}
        world.end_poll(None);
        (world, poll)
    };
    // The thread lost its CPU between the end of its poll and the record of it.
    let (mut world, poll) = stalled();
    assert_eq!(world.compute(TICK), []);
    world.ends = [Some((poll, at(16))), None];
    assert_eq!(ended(&world.compute(TICK)).unwrap().duration, ms(11));
    // Without a record the end is known to within the tick in which it fell.
    let (mut world, _) = stalled();
    let (before, after) = (at(world.now), at(world.now).plus(TICK));
    assert_eq!(world.compute(TICK), []);
    let stall = ended(&world.compute(TICK)).unwrap();
    let end = stall.since.plus(stall.duration);
    assert_eq!(
        (end.minus(stall.error), end.plus(stall.error)),
        (before, after)
    );
}

#[test]
fn short_polls_one_after_another_are_none() {
    let mut world = World::parked().wake();
    for round in 0..1_000 {
        world.begin_poll(None);
        assert_eq!(world.compute(TICK), []);
        world.end_poll(None);
        assert_eq!(world.compute(TICK), []);
        if round % 61 == 0 {
            world.publish(TICK * 122);
        }
    }
}

#[test]
fn a_parked_worker_is_never_reported() {
    let mut world = World::parked();
    // Not even if its thread's slot shows a poll: a mark that leaked, or a thread that has moved on.
    world.begin_poll(None);
    for _ in 0..1_000 {
        assert_eq!(world.sleep(TICK), []);
    }
    // Positive control: the same marks on an active worker.
    let mut world = world.wake();
    assert!(began(&world.until_found(|world| world.sleep(TICK)).1).is_some());
}

#[test]
fn block_in_place_is_not_a_stall() {
    let mut world = World::polling_since(5);
    assert_eq!(world.sleep(TICK), []);
    // Another thread has taken the worker: it parks, wakes, works.
    world.park();
    for _ in 0..1_000 {
        assert_eq!(world.sleep(TICK), []);
        world.counters.parks += 2;
        world.publish(Duration::from_micros(10));
    }
    // The poll comes back and ends; the busy counter has not counted it.
    world.end_poll(Some(at(world.now)));
    assert_eq!(world.compute(TICK), []);
}

#[test]
fn block_in_place_is_not_a_stall_when_the_worker_parks_and_comes_back() {
    let mut world = World::polling_since(5);
    // By the first look at this poll its worker has gone on elsewhere, and is parked.
    world.park();
    assert_eq!(world.sleep(TICK), []);
    for _ in 0..20 {
        assert_eq!(world.sleep(TICK), []);
    }
    // It wakes for a task that takes a while, on a thread we do not know. Our thread's sleep proves
    // nothing about it.
    world.counters.parks += 1;
    for _ in 0..5 {
        assert_eq!(world.sleep(TICK), []);
    }
    world.publish(ms(25));
    // Positive control: a thread we do not know is found out as well, if it takes long enough.
    let (ticks, found) = world.until_found(|world| world.sleep(TICK));
    assert_eq!(began(&found).unwrap().certainty, Certainty::Likely);
    assert!(TICK * ticks >= THRESHOLD * UNKNOWN_THREAD);
}

#[test]
fn what_a_stack_shows_in_block_in_place_is_no_stall() {
    let polled = |shown: Option<Shown>| {
        let mut world = World::polling_since(5);
        world.compute(TICK);
        let serial = world.detector.watches().unwrap();
        if let Some(shown) = shown {
            world.detector.show(serial, shown);
        }
        let mut found = Findings::new();
        for _ in 0..6 {
            found.extend(world.sleep(TICK));
        }
        world.end_poll(Some(at(40)));
        found.extend(world.compute(TICK));
        found
    };
    assert_eq!(polled(Some(Shown::MovedAway)), Findings::new());
    assert!(began(&polled(None)).is_some());
}

#[test]
fn where_polls_leave_a_marked_one_waits_for_the_stack_that_may_show_it_elsewhere() {
    // None has been seen to: the stack is waited for a little, and not at all where it is rationed.
    let mut patient = World::polling_since(5).with_stacks();
    let (ticks, found) = patient.until_found(|world| world.sleep(TICK));
    assert!(began(&found).is_some() && (3..=2 + MARKS_WAIT).contains(&ticks));
    let mut refused = World::polling_since(5).with_stacks();
    refused.sleep(TICK);
    let serial = refused.detector.watches().unwrap();
    refused.detector.show_none(serial, Refused::Rationed);
    assert!(began(&refused.sleep(TICK)).is_some());
    // Another thread polls a row meanwhile: when the counters move, they have counted that.
    let polled = |shown: Option<Shown>| {
        let mut world = World::polling_since(5).with_stacks();
        world.detector.polls_leave();
        let mut found = Findings::new();
        let serial = world.detector.watches().map(|serial| serial + 1);
        for _ in 0..6 {
            found.extend(world.sleep(TICK));
        }
        assert_eq!(found, []);
        world.end_poll(Some(at(35)));
        world.publish(ms(61));
        found.extend(world.compute(TICK));
        if let (Some(serial), Some(shown)) = (serial, shown) {
            world.detector.show(serial, shown);
        }
        for _ in 0..3 {
            world.publish(TICK);
            found.extend(world.compute(TICK));
        }
        ended(&found).map(|stall| stall.duration)
    };
    assert_eq!(polled(None), None);
    assert_eq!(polled(Some(Shown::MovedAway)), None);
    assert_eq!(polled(Some(Shown::Driving)), Some(ms(30)));
}

#[test]
fn allowed_blocking_is_not_a_stall_and_does_not_count_towards_one() {
    let mut world = World::polling_since(5);
    world.slot().allowed = true;
    for _ in 0..1_000 {
        assert_eq!(world.sleep(TICK), []);
    }
    let left = at(world.now);
    world.slot().allowed = false;
    world.slot().allowed_until = Some(left);
    assert_eq!(world.compute(TICK), []);
    let stall =
        began(&world.compute(TICK)).expect("ten milliseconds more are a stall of their own");
    assert_eq!((stall.since, stall.duration), (left, ms(10)));
}

#[test]
fn blocking_allowed_between_two_ticks_starts_the_count_again() {
    let mut world = World::polling_since(5);
    assert_eq!(world.compute(ms(4)), []);
    world.slot().allowed_until = Some(at(13));
    assert_eq!(world.compute(TICK), []);
    assert_eq!(world.compute(TICK), []);
    assert_eq!(began(&world.compute(TICK)).unwrap().since, at(13));
}
