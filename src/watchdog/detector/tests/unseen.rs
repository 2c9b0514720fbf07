//! What was over before a tick could see it.

use super::*;
use crate::slot::LongPoll;

#[test]
fn a_short_visit_to_block_in_place_between_two_ticks_is_not_a_stall() {
    let key = PollKey {
        thread: THREAD,
        epoch: 1,
    };
    let record = |ended| LongPoll {
        epoch: 1,
        started: Some(at(3)),
        ended,
        name: 0,
    };
    let unseen = |busy| {
        let mut world = World::parked();
        world.compute(ms(1));
        let previous = world.detector.last();
        world.slot().epoch += 2;
        world.counters.parks += 2;
        world.publish(busy);
        assert_eq!(world.compute(ms(25)), []);
        world.detector.ended_unseen(key, &record(at(20)), previous);
        (0..3)
            .flat_map(|_| {
                world.counters.parks += 2;
                world.compute(TICK)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(unseen(ms(1)), [], "the busy counter does not know of it");
    let stall = ended(&unseen(ms(18))).expect("the busy counter has counted it");
    assert_eq!(stall.duration, ms(17));
}

#[test]
fn a_sleep_between_two_idle_ticks_is_found_afterwards() {
    let slept_at = |asleep: u64, runs: u64, seen_once: bool, parks_at: Call| {
        let mut world = World::parked();
        world.parked_at(Some(PARKED));
        world.compute(ms(25));
        if seen_once {
            world.counters.parks += 1;
            world.sleep(TICK);
            world.counters.parks += 1;
        } else {
            world.counters.parks += 2;
        }
        world.publish(ms(20));
        let thread = world.thread.as_mut().unwrap();
        thread.runs += runs - u64::from(seen_once);
        thread.cpu += ms(20 - asleep);
        thread.state = ThreadState::Asleep(Some(parks_at));
        ended(&world.pass(ms(25))).map(|stall| (stall.certainty, stall.duration))
    };
    let slept = |asleep, runs, seen_once| slept_at(asleep, runs, seen_once, PARKED);
    for seen_once in [false, true] {
        // Put on a CPU twice: once to wake, once after the only sleep.
        assert_eq!(slept(15, 2, seen_once), Some((Certainty::Certain, ms(20))));
        assert_eq!(
            slept(15, 7, seen_once),
            Some((Certainty::Likely, ms(20))),
            "six sleeps"
        );
        assert_eq!(slept(1, 2, seen_once), None, "a burst of work is none");
        assert_eq!(
            slept_at(15, 2, seen_once, IN_POOL),
            None,
            "perhaps in `block_in_place`, while another thread was busy"
        );
    }
}
