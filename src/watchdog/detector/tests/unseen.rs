//! What was over before a tick could see it.

use super::*;

#[test]
fn a_short_visit_to_block_in_place_between_two_ticks_is_not_a_stall() {
    let unseen = |busy| {
        let mut world = World::parked();
        world.compute(ms(1));
        let poll = PollKey {
            thread: THREAD,
            epoch: 1,
        };
        world.slot().epoch += 2;
        world.slot().started = Some(at(3));
        world.record(poll, at(20));
        world.counters.parks += 2;
        world.publish(busy);
        let mut found = world.compute(ms(25));
        for _ in 0..3 {
            world.counters.parks += 2;
            found.extend(world.compute(TICK));
        }
        found
    };
    assert_eq!(unseen(ms(1)), [], "the busy counter does not know of it");
    let stall = ended(&unseen(ms(18))).expect("the busy counter has counted it");
    assert_eq!(stall.duration, ms(17));
}

#[test]
fn one_turn_between_two_looks_at_a_parked_worker_is_found_afterwards() {
    let unseen = |turns: u32, busy: u64, asleep: u64, runs: u64, holds: bool| {
        let mut world = World::parked().with_turns();
        world.parked_at(Some(PARKED));
        world.compute(ms(25));
        world.counters.parks += 2;
        world.publish(ms(busy));
        world.turn().id.turn += turns;
        world.turn().holds = holds;
        let thread = world.thread.as_mut().unwrap();
        thread.runs += runs;
        thread.cpu += ms(busy - asleep);
        thread.state = ThreadState::Asleep(Some(PARKED));
        ended(&world.pass(ms(60))).map(|stall| (stall.certainty, stall.duration))
    };
    let certain = |duration| Some((Certainty::Certain, ms(duration)));
    // Put on a CPU twice: once to wake, once after the only sleep. One turn polls, another one parks.
    assert_eq!(unseen(2, 20, 15, 2, true), certain(20));
    assert_eq!(unseen(2, 20, 15, 7, true), None, "six sleeps");
    assert_eq!(
        unseen(2, 41, 0, 1, true),
        certain(41),
        "four polls of one turn"
    );
    assert_eq!(
        unseen(2, 39, 0, 1, true),
        None,
        "each less than the threshold"
    );
    assert_eq!(unseen(3, 41, 15, 2, true), None, "two turns");
    assert_eq!(
        unseen(2, 20, 15, 2, false),
        None,
        "the worker is another thread's"
    );
}
