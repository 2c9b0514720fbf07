//! Workers without marks: what counters, sleeps and counting prove, and what stays likely.

use super::*;

#[test]
fn one_sleep_without_marks_is_certain() {
    let mut world = World::parked().wake().with_stacks();
    world.compute(ms(5));
    world.sleep(TICK);
    world.sleep(TICK);
    world.show(Shown::Driving);
    let stall = began(&world.sleep(TICK)).expect("not likely first");
    assert_eq!(stall.certainty, Certainty::Certain);
    world.publish(ms(60));
    world.park();
    world.now += 40;
    assert!(ended(&world.compute(TICK)).is_some());
}

/// What was sampled while a poll was in `block_in_place`, and another thread polled a row: the sleeper is still
/// taken for the worker's thread, and the counters stand still.
fn left_by_block_in_place() -> World {
    let mut world = World::parked().wake();
    world.compute(ms(2));
    world.with_stacks()
}

#[test]
fn a_sleep_without_marks_says_nothing_before_a_stack_does() {
    let slept = |shown: Option<Shown>| {
        let mut world = left_by_block_in_place();
        let mut found = world.sleep(TICK);
        found.extend(world.sleep(TICK));
        if let Some(shown) = shown {
            world.show(shown);
        }
        for _ in 0..5 {
            found.extend(world.sleep(TICK));
        }
        // In the pool afterwards, while the row goes on.
        world.thread.as_mut().unwrap().state = ThreadState::Asleep(Some(IN_POOL));
        world.thread.as_mut().unwrap().runs += 1;
        for _ in 0..5 {
            found.extend(world.pass(TICK));
        }
        found
    };
    assert_eq!(slept(None), [], "no stack yet");
    assert_eq!(slept(Some(Shown::MovedAway)), []);
    assert_eq!(slept(Some(Shown::Parked)), [], "for another worker");
    // Where there are no stacks, nothing tells.
    let stall = began(&slept(Some(Shown::Unclear))).unwrap();
    assert_eq!(stall.certainty, Certainty::Likely);
    // Positive control.
    let stall = began(&slept(Some(Shown::Driving))).unwrap();
    assert_eq!(stall.certainty, Certainty::Certain);
}

#[test]
fn where_no_poll_can_leave_its_worker_no_stack_is_needed() {
    let mut world = World::parked().wake().with_stacks();
    world.detector.polls_stay(Some(true));
    world.compute(ms(5));
    let (ticks, found) = world.until_found(|world| world.sleep(TICK));
    let stall = began(&found).unwrap();
    assert_eq!(
        (stall.certainty, ticks),
        (Certainty::Certain, 3),
        "not likely first"
    );
}

#[test]
fn where_polls_leave_the_worker_only_a_stack_is_believed() {
    let mut world = left_by_block_in_place();
    world.sleep(TICK);
    world.sleep(TICK);
    world.show(Shown::MovedAway);
    world.sleep(TICK);
    world.publish(ms(20));
    world.compute(ms(2));
    world.sleep(TICK);
    world.sleep(TICK);
    world.show(Shown::Unclear);
    for _ in 0..5 {
        assert_eq!(world.sleep(TICK), []);
    }
    world.publish(ms(30));
    world.compute(ms(2));
    // A marked poll as well: its mark stands while it is in `block_in_place`.
    world.begin_poll(Some(at(world.now)));
    for _ in 0..5 {
        assert_eq!(world.sleep(TICK), []);
    }
    // Positive control.
    world.show(Shown::Driving);
    assert!(began(&world.sleep(TICK)).is_some());
}

#[test]
fn a_sleep_that_ended_before_its_stack_was_explained_is_found_afterwards() {
    let slept = |shown: Option<Shown>, parks_at: Option<Call>, polls_stay: Option<bool>| {
        let mut world = World::parked().with_stacks();
        world.detector.polls_stay(polls_stay);
        world.parked_at(Some(PARKED));
        let mut world = world.wake();
        world.compute(ms(2));
        let mut found = world.sleep(TICK);
        found.extend(world.sleep(TICK));
        let serial = world.detector.watches().unwrap();
        found.extend(world.sleep(TICK));
        assert_eq!(found, []);
        world.publish(ms(17));
        world.park();
        found.extend(world.parked_at(parks_at));
        if let Some(shown) = shown {
            world.detector.show(serial, shown);
        }
        found.extend(world.parked_at(parks_at));
        ended(&found).map(|stall| stall.certainty)
    };
    let may_leave = Some(false);
    let driving = slept(Some(Shown::Driving), None, may_leave);
    assert_eq!(driving, Some(Certainty::Certain));
    assert_eq!(slept(Some(Shown::MovedAway), None, may_leave), None);
    assert_eq!(
        slept(None, Some(IN_POOL), None),
        None,
        "it parks none there"
    );
    // The worker's thread has come back to where it parks it: from its poll, if polls cannot leave.
    assert_eq!(slept(None, Some(PARKED), None), Some(Certainty::Certain));
    assert_eq!(slept(None, Some(PARKED), may_leave), None);
}

#[test]
fn a_row_of_61_polls_of_a_millisecond_is_not_a_stall() {
    let mut world = World::parked();
    for _ in 0..20 {
        world.park();
        // Awake for 61 ms, then parked for 40: nothing is usual about it.
        for _ in 0..12 {
            assert_eq!(world.compute(TICK), []);
        }
        world.publish(ms(61));
        world.park();
        for _ in 0..8 {
            assert_eq!(world.parked_at(Some(PARKED)), []);
        }
    }
    // Positive control: more than twice as long is likely.
    world.park();
    let (ticks, found) = world.until_found(|world| world.compute(TICK));
    assert_eq!(began(&found).unwrap().certainty, Certainty::Likely);
    assert!(TICK * ticks >= ms(122) && TICK * ticks <= ms(132));
}

#[test]
fn a_signal_of_ours_does_not_break_the_proof_of_a_sleep() {
    let mut world = World::parked().wake();
    world.sleep(TICK);
    world.sleep(TICK);
    world.show(Shown::Driving);
    // Woken once, by us, and back in the same call at the same place.
    world.signalled = true;
    world.thread.as_mut().unwrap().runs += 1;
    world.thread.as_mut().unwrap().cpu += Duration::from_micros(20);
    let stall = began(&world.sleep(TICK)).expect("it has slept for the threshold");
    assert_eq!(stall.certainty, Certainty::Certain);
    // Woken by somebody else: another sleep, as far as anybody knows.
    let mut world = World::parked().wake();
    world.sleep(TICK);
    world.sleep(TICK);
    world.thread.as_mut().unwrap().runs += 1;
    let stall = began(&world.sleep(TICK));
    assert!(stall.is_none_or(|stall| stall.certainty == Certainty::Likely));
}

#[test]
fn many_short_sleeps_without_marks_are_only_likely() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    let (_, found) = world.until_found(|world| {
        world.thread.as_mut().unwrap().runs += 7;
        world.sleep(TICK)
    });
    assert_eq!(began(&found).unwrap().certainty, Certainty::Likely);
}

#[test]
fn computing_without_marks_is_likely_first_and_certain_when_counted_out() {
    let mut world = World::parked().wake();
    world.compute(ms(5));
    let (_, found) = world.until_found(|world| world.compute(TICK));
    assert_eq!(began(&found).unwrap().certainty, Certainty::Likely);
    let mut surer = None;
    while surer.is_none() {
        surer = world
            .compute(TICK)
            .into_iter()
            .find_map(|finding| match finding {
                Finding::Ongoing(stall) | Finding::Began(stall)
                    if stall.certainty == Certainty::Certain =>
                {
                    Some(stall)
                }
                Finding::Ended(stall) => panic!("{stall:?} does not end"),
                _ => None,
            });
    }
    let age = surer.unwrap().duration;
    assert!(
        age >= THRESHOLD * 244 && age < THRESHOLD * 244 + TICK * 3,
        "{age:?}"
    );
}

#[test]
fn a_worker_that_publishes_is_not_held() {
    let mut world = World::parked().wake();
    for _ in 0..1_000 {
        world.publish(TICK);
        assert_eq!(world.compute(TICK), []);
    }
}

#[test]
fn a_busy_worker_must_stand_out_from_its_own_usual_pace() {
    // 61 polls of a third of a millisecond: 20 ms between two publications, for ever.
    let mut world = World::parked().wake();
    let mut said = Vec::new();
    for round in 0..100u32 {
        for _ in 0..4 {
            said.extend(
                world
                    .compute(TICK)
                    .into_iter()
                    .map(|finding| (round, finding)),
            );
        }
        world.publish(ms(20));
    }
    let last = said.iter().map(|(round, _)| *round).max();
    assert!(
        last <= Some(OUTLIERS as u32 + 1),
        "only the first rounds can surprise, not round {last:?}"
    );
    assert!(said.iter().all(|(_, finding)| match finding {
        Finding::Began(stall) | Finding::Ongoing(stall) | Finding::Ended(stall) =>
            stall.certainty == Certainty::Likely,
        Finding::Suspect(_) => false,
    }));
    // Positive control: ten times as long does stand out.
    let (_, found) = world.until_found(|world| world.compute(TICK));
    assert!(began(&found).is_some());
}

#[test]
fn marks_that_come_and_go_are_a_sign_of_life() {
    let mut world = World::parked().wake();
    for _ in 0..200 {
        world.slot().epoch += 2;
        assert_eq!(world.compute(TICK), []);
    }
}

#[test]
fn inner_marks_do_not_hide_a_turn_that_never_ends() {
    // One unmarked task that enters and leaves spans in a loop and never returns.
    let mut world = World::parked().wake();
    world.compute(TICK);
    let (ticks, found) = world.until_found(|world| {
        world.slot().epoch += 2;
        world.compute(TICK)
    });
    let stall = began(&found).unwrap();
    assert_eq!(
        (stall.held_by, stall.certainty),
        (HeldBy::CountedOut, Certainty::Certain)
    );
    assert!(TICK * ticks >= THRESHOLD * 244);
    assert!(stall.duration >= THRESHOLD * 244);
    // A pulse received in between proves that the worker has come back to its loop.
    let mut world = World::parked().wake();
    for turn in 0..2_000 {
        world.slot().epoch += 2;
        world.slot().loops += u64::from(turn % 100 == 0);
        assert_eq!(world.compute(TICK), []);
    }
}

/// A worker whose runtime nobody may be driving.
fn current_thread() -> World {
    let mut world = World::parked().wake();
    world.detector = Detector::new(Rules {
        always_driven: false,
        ..rules()
    });
    world
}

#[test]
fn an_undriven_current_thread_runtime_is_not_reported() {
    let mut world = current_thread();
    for _ in 0..10_000 {
        assert_eq!(world.sleep(TICK), []);
    }
    // Driven again, it works for a moment: the busy counter shows that it had not been all the time.
    world.publish(ms(1));
    assert_eq!(world.compute(TICK), []);
    // Positive control: a mark is proof.
    world.begin_poll(None);
    assert!(began(&world.until_found(|world| world.sleep(TICK)).1).is_some());
}

#[test]
fn a_driven_current_thread_runtime_is_reported_when_its_busy_counter_proves_it() {
    let mut world = current_thread();
    world.compute(TICK);
    for _ in 0..40 {
        assert_eq!(world.sleep(TICK), []);
    }
    world.publish(ms(200));
    let stall = ended(&world.compute(TICK)).unwrap();
    assert_eq!(stall.certainty, Certainty::Certain);
    assert!(
        stall.duration >= ms(190) && stall.duration <= ms(205),
        "{stall:?}"
    );
}

#[test]
fn a_current_thread_runtime_is_believed_with_a_stack_that_shows_it_driven() {
    let slept = |shown: Option<Shown>| {
        let mut world = current_thread();
        let mut found = Findings::new();
        for tick in 0..6 {
            found.extend(world.sleep(TICK));
            if tick == 2 {
                let serial = world.detector.watches().unwrap();
                if let Some(shown) = shown {
                    world.detector.show(serial, shown);
                }
            }
        }
        began(&found).map(|stall| stall.certainty)
    };
    assert_eq!(slept(Some(Shown::Driving)), Some(Certainty::Certain));
    assert_eq!(slept(None), None, "nobody may be driving it");
}
