//! Marked polls: certain, as exact as their measured times, and no stall once they have left their
//! worker.

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
fn two_ticks_a_little_close_together_are_a_threshold_if_the_start_is_not_known() {
    // D85. The world's clock counts whole milliseconds, so all times are a hundred times as long.
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
    assert!(!long([460, 460], None));
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
        world.end_poll(Some(at(17)));
        world.publish(ms(17));
        let now = world.compute(ms(5));
        world.publish(ms(5));
        (now, world.compute(ms(5)))
    };
    let (now, next) = first_looks(0);
    let stall = ended(&now)
        .or_else(|| ended(&next))
        .expect("11 ms asleep for sure");
    assert_eq!(stall.certainty, Certainty::Certain);
    // A thread that was put on a CPU in between may have slept twice, the first time in another
    // poll (D86).
    let (now, next) = first_looks(1);
    assert_eq!((now, next), (Findings::new(), Findings::new()));
}

#[test]
fn the_call_in_which_a_worker_was_parked_is_not_slept_in() {
    let stall_after = |polls: fn(&mut World) -> Findings| {
        let mut world = World::parked();
        world.parked_at(Some(PARKED));
        // The look meets the mark of a poll whose thread it has seen asleep just before.
        world.counters.parks += 1;
        world.begin_poll(Some(at(10)));
        world.parked_at(Some(PARKED));
        began(&world.until_found(polls).1).expect("a stall")
    };
    let computes = stall_after(|world| world.compute(TICK));
    assert_eq!(computes.call, None, "{computes:?}");
    let sleeps = stall_after(|world| world.sleep(TICK));
    assert_eq!(sleeps.call, Some(CALL), "{sleeps:?}");
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
    world.record(poll, at(16));
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
    // Its thread's slot shows a poll: a mark that leaked, or a thread that has left the worker.
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
    // Another thread has taken the worker: it parks, wakes and works (D28).
    world.park();
    for _ in 0..1_000 {
        assert_eq!(world.sleep(TICK), []);
        world.counters.parks += 2;
        world.publish(Duration::from_micros(10));
    }
    // The poll comes back and ends. The busy counter has not counted it (D33).
    world.end_poll(Some(at(world.now)));
    assert_eq!(world.compute(TICK), []);
}

#[test]
fn a_poll_that_a_stack_shows_in_block_in_place_is_no_stall() {
    let polled = |shown: StackVerdict| {
        let mut world = World::polling_since(5).with_stacks();
        world.compute(TICK);
        world.show(shown);
        let mut found = Findings::new();
        for _ in 0..6 {
            found.extend(world.sleep(TICK));
        }
        world.end_poll(Some(at(40)));
        found.extend(world.compute(TICK));
        found
    };
    assert_eq!(polled(StackVerdict::Detached), []);
    assert!(began(&polled(StackVerdict::Driving)).is_some());
}

#[test]
fn a_mark_is_not_overruled_by_a_guess() {
    let mut world = World::polling_since(5).with_stacks();
    world.compute(TICK);
    world.show(StackVerdict::Doubtful);
    let stall = began(&world.sleep(TICK)).expect("the mark is open");
    assert_eq!(stall.certainty, Certainty::Likely);
    // A stack without guesses decides, whatever was shown before.
    world.show(StackVerdict::Driving);
    world.show(StackVerdict::Doubtful);
    let surer = world.sleep(TICK);
    assert!(
        matches!(surer[..], [Finding::Ongoing(stall)] if stall.certainty == Certainty::Certain),
        "{surer:?}"
    );
}

#[test]
fn a_mark_waits_for_a_stack_but_not_for_ever() {
    let mut world = World::polling_since(5).with_stacks();
    let (ticks, found) = world.until_found(|world| world.sleep(TICK));
    assert!(began(&found).is_some() && ticks > TICKS_FOR_A_STACK);
    let mut world = World::polling_since(5).with_stacks();
    world.sleep(TICK);
    world.show(StackVerdict::Inconclusive);
    let stall = began(&world.sleep(TICK)).expect("there is no stack");
    assert_eq!(stall.certainty, Certainty::Certain);
}

#[test]
fn a_mark_without_a_stack_is_only_likely_once_polls_have_left_the_worker() {
    let mut world = World::polling_since(5).with_stacks();
    world.sleep(TICK);
    world.show(StackVerdict::Detached);
    world.sleep(TICK);
    world.end_poll(None);
    world.publish(TICK);
    world.compute(TICK);
    world.begin_poll(Some(at(world.now)));
    world.sleep(TICK);
    world.show(StackVerdict::Inconclusive);
    let stall = began(&world.sleep(TICK)).unwrap();
    assert_eq!(stall.certainty, Certainty::Likely);
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

#[test]
fn blocking_allowed_until_after_the_look_at_the_thread_does_not_count() {
    // D80. The watchdog lost its CPU between its looks at the thread and at the mark.
    let slept_beyond = |allowed: u64, own: u64| {
        let mut world = World::polling_since(5);
        world.sleep(TICK);
        world.slot().allowed_until = Some(at(world.now + 5 + allowed));
        world.sleep(TICK);
        world.sleep(ms(allowed + own))
    };
    assert_eq!(slept_beyond(15, 9), []);
    assert!(began(&slept_beyond(15, 10)).is_some());
}

#[test]
fn a_wait_for_a_cpu_after_allowed_blocking_is_not_blamed() {
    let waited_after = |allowed: u64| {
        let mut world = World::polling_since(5);
        world.sleep(TICK);
        world.slot().allowed_until = Some(at(world.now + allowed));
        world.thread.as_mut().unwrap().run_queue += ms(12);
        world.sleep(ms(allowed + 12))
    };
    assert_eq!(waited_after(15), []);
    let mut world = World::polling_since(5);
    world.sleep(TICK);
    world.slot().allowed_until = Some(at(world.now + 15));
    assert!(
        began(&world.sleep(ms(27))).is_some(),
        "without the wait it slept itself"
    );
}

#[test]
fn a_poll_that_began_after_the_look_at_its_thread_counts_from_its_begin() {
    // D239. Its mark was read late, since the watchdog had lost its CPU.
    let after = |computing: u64, waiting: u64| {
        let mut world = World::parked().wake().with_turns();
        world.compute(ms(5));
        world.begin_poll(Some(at(20)));
        world.compute(TICK);
        let thread = world.thread.as_mut().unwrap();
        thread.cpu += ms(10 + computing);
        thread.run_queue += ms(waiting);
        thread.state = ThreadState::OnCpu;
        world.pass(ms(10 + computing + waiting))
    };
    assert_eq!(after(2, 10), [], "the poll before computed, too");
    assert!(began(&after(12, 0)).is_some());
}

#[test]
fn of_two_sleeps_in_one_system_call_the_longer_one_is_named() {
    let slept_in = |sleeps: [(u64, u64); 2]| {
        let mut world = World::polling_since(5).with_turns();
        for (pc, ticks) in sleeps {
            for _ in 0..ticks {
                let thread = world.thread.as_mut().unwrap();
                thread.state = ThreadState::Asleep(Some(Call { pc, ..CALL }));
                world.pass(TICK);
            }
        }
        world.end_poll(Some(at(world.now)));
        let call = ended(&world.compute(TICK)).expect("a stall").call;
        call.expect("a call").pc
    };
    assert_eq!(slept_in([(1, 6), (2, 3)]), 1);
    assert_eq!(slept_in([(1, 3), (2, 6)]), 2);
}
