//! Workers without marks and turns: the proofs by counters, by one sleep, and by counting.

use super::*;

#[test]
fn one_sleep_without_marks_is_certain() {
    let mut world = World::parked().wake().with_stacks();
    world.compute(ms(5));
    world.sleep(TICK);
    world.sleep(TICK);
    world.show(StackVerdict::Driving);
    let stall = began(&world.sleep(TICK)).expect("not likely first");
    assert_eq!(stall.certainty, Certainty::Certain);
    world.publish(ms(60));
    world.park();
    world.now += 40;
    assert!(ended(&world.compute(TICK)).is_some());
}

#[test]
fn a_sleep_without_marks_needs_a_stack_that_shows_driving() {
    let slept = |shown: Option<StackVerdict>| {
        let mut world = World::parked().wake().with_stacks();
        world.compute(ms(2));
        let mut found = world.sleep(TICK);
        found.extend(world.sleep(TICK));
        if let Some(shown) = shown {
            world.show(shown);
        }
        for _ in 0..5 {
            found.extend(world.sleep(TICK));
        }
        found
    };
    for shown in [
        None,
        Some(StackVerdict::Detached),
        Some(StackVerdict::Parked),
        Some(StackVerdict::Inconclusive),
    ] {
        assert_eq!(slept(shown), [], "{shown:?}");
    }
    // Positive control.
    let stall = began(&slept(Some(StackVerdict::Driving))).unwrap();
    assert_eq!(stall.certainty, Certainty::Certain);
}

#[test]
fn a_row_of_61_polls_of_a_millisecond_is_not_a_stall() {
    let mut world = World::parked();
    for _ in 0..20 {
        world.park();
        for _ in 0..12 {
            assert_eq!(world.compute(TICK), []);
        }
        world.publish(ms(61));
        world.park();
        for _ in 0..8 {
            assert_eq!(world.parked_at(Some(PARKED)), []);
        }
    }
}

#[test]
fn a_signal_of_ours_does_not_break_the_proof_of_a_sleep() {
    let mut world = World::parked().wake();
    world.sleep(TICK);
    world.sleep(TICK);
    world.show(StackVerdict::Driving);
    // Our signal woke the thread once, and it is back in the same call at the same place (D35).
    world.signalled = true;
    world.thread.as_mut().unwrap().runs += 1;
    world.thread.as_mut().unwrap().cpu += Duration::from_micros(20);
    let stall = began(&world.sleep(TICK)).expect("it has slept for the threshold");
    assert_eq!(stall.certainty, Certainty::Certain);
    // Something else woke it: this may be another sleep.
    let mut world = World::parked().wake();
    world.sleep(TICK);
    world.sleep(TICK);
    world.show(StackVerdict::Driving);
    world.thread.as_mut().unwrap().runs += 1;
    assert_eq!(world.sleep(TICK), []);
}

#[test]
fn without_marks_and_turns_only_counting_finds_many_sleeps_and_computing() {
    let counted = |mut step: fn(&mut World) -> Findings| {
        let mut world = World::parked().wake();
        world.compute(ms(5));
        let (_, found) = world.until_found(&mut step);
        let stall = began(&found).unwrap();
        assert_eq!(stall.certainty, Certainty::Certain);
        stall.duration
    };
    let ages = [
        counted(|world| world.compute(TICK)),
        counted(|world| {
            world.thread.as_mut().unwrap().runs += 7;
            world.sleep(TICK)
        }),
    ];
    for age in ages {
        let enough = THRESHOLD * POLLS_IN_A_PUBLICATION;
        assert!(age >= enough && age < enough + TICK * 3, "{age:?}");
    }
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
        (HeldBy::CountedOut(244), Certainty::Certain)
    );
    assert!(TICK * ticks >= THRESHOLD * 244);
    assert!(stall.duration >= THRESHOLD * 244);
    // A pulse in between proves that the worker has come back to its loop.
    let mut world = World::parked().wake();
    for turn in 0..2_000 {
        world.slot().epoch += 2;
        world.slot().loops += u64::from(turn % 100 == 0);
        assert_eq!(world.compute(TICK), []);
    }
}

/// A worker of a runtime that may not be driven: its counters do not show it (D26).
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
    // It is driven again, and works for a moment. The busy counter shows that it did not work
    // before.
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
    let slept = |shown: Option<StackVerdict>| {
        let mut world = current_thread().with_stacks();
        let mut found = Findings::new();
        for tick in 0..6 {
            found.extend(world.sleep(TICK));
            if tick == 2 {
                if let Some(shown) = shown {
                    world.show(shown);
                }
            }
        }
        began(&found).map(|stall| stall.certainty)
    };
    assert_eq!(slept(Some(StackVerdict::Driving)), Some(Certainty::Certain));
    assert_eq!(slept(None), None, "it may not be driven");
}

#[test]
fn a_thread_in_block_in_place_is_not_blamed_by_counting() {
    // Its stack has shown it elsewhere. Another thread has the worker, and does not move it (D22).
    let counted = |shown: StackVerdict| {
        let mut world = World::parked().wake();
        let mut found = Findings::new();
        for _ in 0..3 {
            found.extend(world.sleep(TICK));
        }
        world.show(shown);
        for _ in 0..THRESHOLD.as_micros() * 250 / TICK.as_micros() {
            found.extend(world.sleep(TICK));
        }
        began(&found)
    };
    assert_eq!(counted(StackVerdict::Detached), None);
    let stall = counted(StackVerdict::Driving);
    assert!(stall.is_some(), "the positive control");
}

#[test]
fn without_any_evidence_an_unmarked_poll_is_found_late_and_then_for_certain() {
    // As on a system that shows neither turns nor threads nor stacks.
    let found_in_the_end = |marked: bool| {
        let mut world = World::parked().wake();
        world.thread = None;
        world.pass(TICK);
        if marked {
            world.begin_poll(Some(at(5)));
        }
        let (_, found) = world.until_found(|world| world.pass(TICK));
        let stall = began(&found).unwrap();
        (stall.duration, stall.certainty)
    };
    let (late, certainty) = found_in_the_end(false);
    assert!(late >= 61 * 4 * ms(10), "{late:?}");
    assert_eq!(certainty, Certainty::Certain);
    // Positive control: a mark is all that is needed.
    let (early, certainty) = found_in_the_end(true);
    assert!(early <= ms(20), "{early:?}");
    assert_eq!(certainty, Certainty::Certain);
}

/// One of several sleeps in a row, each of another poll, while the worker publishes nothing.
fn another_sleep(world: &mut World) -> (u64, Findings) {
    world.thread.as_mut().unwrap().runs += 7;
    let mut found = world.sleep(TICK);
    let serial = world.detector.hold_serial().expect("it sleeps");
    for _ in 0..24 {
        found.extend(world.sleep(TICK));
    }
    (serial, found)
}

#[test]
fn a_verdict_that_comes_late_is_about_its_own_sleep() {
    let mut world = World::parked().wake().with_stacks();
    world.compute(ms(5));
    let (first, _) = another_sleep(&mut world);
    let (second, _) = another_sleep(&mut world);
    assert_ne!(first, second);
    // The stack of the first sleep is explained in the third.
    world.shown.push((first, StackVerdict::Driving));
    let (_, found) = another_sleep(&mut world);
    assert_eq!(found, [], "no word about the third, nor about all of them");
    world.publish(ms(375));
    world.park();
    let stall = ended(&world.sleep(TICK)).expect("the first is proven");
    assert_eq!((stall.serial, stall.certainty), (first, Certainty::Certain));
    assert!(stall.duration <= ms(130), "{:?}", stall.duration);
}

#[test]
fn a_stall_of_one_sleep_is_no_older_than_that_sleep() {
    let mut world = World::parked().wake().with_stacks();
    for _ in 0..8 {
        let (serial, _) = another_sleep(&mut world);
        world.shown.push((serial, StackVerdict::Driving));
        let stall = began(&world.sleep(TICK)).expect("it has slept for the threshold");
        assert!(stall.duration <= ms(135), "{:?}", stall.duration);
    }
}

#[test]
fn a_sleep_that_is_counted_out_before_its_stack_comes_is_one_stall() {
    let mut world = World::parked().wake().with_stacks();
    world.compute(ms(5));
    world.sleep(TICK);
    let serial = world.detector.hold_serial().expect("it sleeps");
    let (_, found) = world.until_found(|world| world.sleep(TICK));
    assert_eq!(began(&found).unwrap().held_by, HeldBy::CountedOut(244));
    // The stack of the sleep is explained only now.
    world.shown.push((serial, StackVerdict::Driving));
    assert_eq!(world.sleep(TICK), []);
    world.publish(ms(3_000));
    world.park();
    let found = world.sleep(TICK);
    let ended = found
        .iter()
        .filter(|found| matches!(found, Finding::Ended(_)));
    assert_eq!(ended.count(), 1, "{found:?}");
    for _ in 0..10 {
        assert_eq!(world.parked_at(Some(PARKED)), []);
    }
}
