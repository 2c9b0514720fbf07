//! Polls that memory distinguishes: one long poll is certain at the threshold, and a row of short
//! ones is no stall.

use super::*;

/// A worker at work, seen once, whose turns are seen.
fn at_work() -> World {
    let mut world = World::parked().wake().with_turns();
    world.compute(TICK);
    world.next_turn();
    world
}

/// The findings of four steps in one poll.
fn held(mut world: World, step: fn(&mut World) -> Findings) -> Findings {
    let mut found = Findings::new();
    for _ in 0..4 {
        found.extend(step(&mut world));
    }
    found
}

#[test]
fn one_unmarked_poll_is_certain_at_the_threshold() {
    for step in [
        |world: &mut World| world.compute(TICK),
        |world: &mut World| world.sleep(TICK),
    ] {
        let mut world = at_work();
        let (ticks, found) = world.until_found(step);
        let stall = began(&found).expect("no likely stall first");
        assert_eq!((stall.certainty, stall.task), (Certainty::Certain, 7));
        assert_eq!(ticks, 3, "first seen, and for two ticks more");
    }
}

#[test]
fn the_first_poll_after_a_park_is_known_from_its_beginning() {
    let mut world = World::parked().with_turns();
    world.compute(TICK);
    let mut world = world.wake();
    world.next_turn();
    world.turn().begun = Some(at(7));
    world.thread.as_mut().unwrap().runs += 1;
    world.fall_asleep(ms(3), ms(2));
    world.thread.as_mut().unwrap().runs += 1;
    world.compute(TICK);
    let stall = began(&world.compute(ms(2))).expect("10 ms are reached");
    assert_eq!((stall.since, stall.duration), (at(7), ms(10)));
    assert_eq!(stall.error, Duration::ZERO);
    // The thread was asleep before it began.
    assert_eq!((stall.split.cpu, stall.split.asleep), (ms(10), ms(0)));
}

#[test]
fn rows_of_short_polls_are_none() {
    type Goes = fn(&mut Turn);
    let rows: [(&str, Goes); 4] = [
        ("one task that yields", |turn| turn.id.turn += 2),
        ("many tasks", |turn| {
            turn.id.turn += 1;
            turn.id.task += 1;
        }),
        ("two tasks of one turn", |turn| {
            turn.id.task = 15 - turn.id.task;
            turn.id.turn += u32::from(turn.id.task == 7);
        }),
        ("calls of block_on", |turn| turn.id.resumed.1 += 1),
    ];
    for (row, goes) in rows {
        let mut world = at_work();
        for _ in 0..1_000 {
            assert_eq!(world.compute(ms(9)), [], "{row}");
            goes(world.turn());
        }
        // Positive control: the last one does not end.
        assert!(
            began(&held(world, |world| world.compute(TICK))).is_some(),
            "{row}"
        );
    }
}

#[test]
fn a_task_that_is_polled_twice_in_one_turn_is_in_two_polls() {
    // From the queue, and again from the "next" slot, with a short poll between that no tick sees.
    let mut world = at_work();
    assert_eq!(world.compute(ms(9)), []);
    world.turn().id.stage = Stage::Next;
    assert_eq!(world.compute(ms(9)), []);
    world.turn().id.stage = Stage::Last;
    assert_eq!(world.compute(ms(9)), []);
    // The turn has taken as long as four polls by then (D25).
    let stall = began(&held(world, |world| world.compute(TICK))).unwrap();
    assert_eq!(stall.certainty, Certainty::Certain);
}

#[test]
fn a_poll_must_outlast_two_if_calls_look_the_same() {
    let found = |step: fn(&mut World) -> Findings| {
        let mut world = at_work();
        world.turn().id.stage = Stage::Unclear;
        let (_, found) = world.until_found(step);
        let stall = began(&found).unwrap();
        assert_eq!(stall.certainty, Certainty::Certain);
        stall.duration
    };
    let computed = found(|world| world.compute(TICK));
    let enough = THRESHOLD * 2 + TICK;
    assert!(
        computed >= enough && computed <= enough + TICK * 2,
        "{computed:?}"
    );
    // One sleep is in one poll (D52).
    let slept = found(|world| world.sleep(TICK));
    assert!(slept <= THRESHOLD + TICK * 2, "{slept:?}");
}

/// A span guard held across an `.await` has left a mark, and other tasks have been polled since.
#[test]
fn a_mark_of_another_task_s_poll_gives_no_begin() {
    for own in [false, true] {
        let mut world = at_work();
        let started = at(world.now);
        world.begin_poll(Some(started));
        world.slot().task = if own { 7 } else { 8 };
        world.turn().task = 7;
        world.turn().id.task = 7;
        let mut found = world.compute(ms(24));
        found.extend(world.compute(ms(3)));
        // Positive control: the same in the poll of the mark's own task.
        assert_eq!(began(&found).is_some(), own, "{found:?}");
        // The name is the mark's all the same (docs/limits.md).
        let hold = world.detector.hold.expect("the poll goes on");
        assert!(matches!(hold.held_by, HeldBy::Mark(_)), "{hold:?}");
    }
}

#[test]
fn a_poll_that_has_left_its_worker_is_none() {
    // In `block_in_place`, with another thread that drives the worker, or with none.
    for turns in [1, 0] {
        let mut world = at_work();
        world.begin_poll(Some(at(world.now)));
        world.compute(ms(4));
        world.turn().has_core = false;
        for _ in 0..1_000 {
            world.turn().id.turn += turns;
            assert_eq!(world.sleep(TICK), []);
        }
        // It comes back. The poll after that counts from then on, and not from the old mark's
        // begin.
        world.turn().has_core = true;
        world.next_turn();
        world.compute(TICK);
        let back = world.now;
        let (_, found) = world.until_found(|world| world.compute(TICK));
        let stall = began(&found).unwrap();
        assert!(stall.since >= at(back - 5), "{:?}", stall.since);
    }
}

#[test]
fn a_mark_that_outlives_its_poll_is_no_mark() {
    // A span guard is held across an `.await`: the mark stays, and the turns go on (D28).
    let mut world = at_work();
    world.begin_poll(Some(at(world.now)));
    for _ in 0..1_000 {
        assert_eq!(world.compute(ms(9)), []);
        world.next_turn();
    }
    // Positive control: a poll inside of it.
    assert!(began(&held(world, |world| world.compute(TICK))).is_some());
}

#[test]
fn a_mark_made_before_the_worker_resumed_is_not_of_this_poll() {
    let mut world = at_work();
    world.begin_poll(Some(at(world.now)));
    world.next_turn();
    world.turn().resumed = Some(at(world.now + 24));
    assert_eq!(world.compute(ms(25)), []);
    assert_eq!(world.compute(ms(4)), [], "four milliseconds old");
}

#[test]
fn a_current_thread_runtime_that_nobody_drives_is_none() {
    let mut world = at_work();
    world.detector = Detector::new(Rules {
        always_driven: false,
        ..rules()
    });
    world.turn().has_core = false;
    for _ in 0..1_000 {
        assert_eq!(world.compute(TICK), []);
    }
    // Positive control: driven, no stack is needed.
    world.turn().has_core = true;
    assert!(began(&held(world, |world| world.compute(TICK))).is_some());
}

#[test]
fn a_turn_of_many_short_marks_is_certain_when_it_has_outlasted_four_polls() {
    // Some of them come or go during a look.
    for settled in [true, false] {
        let mut world = at_work();
        let (ticks, found) = world.until_found(|world| {
            world.slot().epoch += 1;
            world.settled = settled;
            world.compute(TICK)
        });
        let stall = began(&found).unwrap();
        assert_eq!(stall.held_by, HeldBy::CountedOut(4));
        assert!(TICK * ticks >= THRESHOLD * POLLS_IN_A_TURN);
    }
    // The turn has moved on during each look.
    let mut world = at_work();
    for _ in 0..100 {
        world.slot().epoch += 1;
        (world.settled, world.still) = (false, false);
        assert_eq!(world.compute(TICK), []);
    }
}

#[test]
fn waiting_for_a_cpu_is_not_blamed_on_an_unmarked_poll_either() {
    let mut world = at_work();
    world.compute(ms(4));
    for _ in 0..100 {
        assert_eq!(world.starve(TICK), []);
    }
    world.thread.as_mut().unwrap().run_queue += TICK * 100;
    world.compute(ms(4));
    // Positive control.
    assert!(began(&held(world, |world| world.compute(TICK))).is_some());
}

#[test]
fn code_after_a_mark_in_the_same_poll_is_not_as_old_as_the_poll() {
    let mut world = World::parked().with_turns();
    world.compute(TICK);
    let mut world = world.wake();
    world.next_turn();
    world.turn().begun = Some(at(5));
    world.begin_poll(Some(at(5)));
    let (_, found) = world.until_found(|world| world.sleep(TICK));
    assert!(began(&found).is_some());
    for _ in 0..20 {
        world.sleep(TICK);
    }
    world.end_poll(Some(at(world.now)));
    // The mark's end, and a moment more of the same poll (D29).
    let found = world.compute(ms(2));
    assert!(ended(&found).is_some() && began(&found).is_none());
    for _ in 0..3 {
        assert_eq!(world.compute(ms(2)), []);
    }
    // Positive control: the code after the mark is long enough by itself.
    assert!(began(&held(world, |world| world.compute(TICK))).is_some());
}

#[test]
fn a_look_that_met_two_polls_is_of_neither() {
    // Memory was read in one poll, and the mark is of the next one.
    let mut world = at_work();
    world.begin_poll(None);
    world.settled = false;
    assert_eq!(world.compute(TICK), []);
    world.next_turn();
    let (ticks, found) = world.until_found(|world| world.compute(TICK));
    let stall = began(&found).unwrap();
    assert!(matches!(stall.held_by, HeldBy::Mark(_)), "{stall:?}");
    assert_eq!(ticks, 3);
}
