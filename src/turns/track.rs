//! Follows the words of one worker from tick to tick, and drops them when they fail a check.
//!
//! *Runs on:* `stall-watchdog`; `learn_layout` on the thread that starts the first watch of a
//! process.
//! *Must not:* wait, or read memory other than through the kernel.
//!
//! The learned layout gives the places, and each look is checked all the same. The core carries its
//! own count of parks and unparks, of which tokio publishes a copy: a core whose count differs from
//! the published one is not the worker's. A pulse is polled in a turn of its own, so the count of
//! turns must move with pulses. A word that fails is dropped at once, and looked for again a second
//! later.
//!
//! A claim may be old: the thread has left its worker in `block_in_place`, and drives another one.
//! So a core that fails before it has proved itself disproves the claim, and not the words.

use super::layout::{AnchorWords, CoreWords, Layout};
use super::learn::{self, Learned};
use super::{NoTurns, PollId, Turn};
use crate::clock::{AT_ONCE, Nanos};
use crate::os;
use crate::os::memory::{self, Piece};
use crate::slot::{Slot, Thread};
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::runtime::RuntimeFlavor;

static LEARNED: OnceLock<Learned> = OnceLock::new();

/// The time for which words are left alone after they have failed a check.
const DISTRUST: Duration = Duration::from_secs(1);

/// The longest time between the clocks and the reading. A word that says more is no time.
const LONGEST_READING: Duration = Duration::from_secs(1);

/// The cores of other workers that old claims may lead to in a row, before the words are doubted.
const MOST_STRANGERS: u8 = 3;

/// The pulses that may seem to be polled in one turn: two looks are of different moments.
const PULSES_IN_A_TURN: u64 = 2;

/// Learns the places of the words, once per process. Takes some milliseconds, on a thread
/// `stall-turns`: the caller may be inside a runtime.
pub(crate) fn learn_layout() {
    LEARNED.get_or_init(|| {
        let learned = os::spawn("stall-turns", learn::learn).ok();
        // If there is no thread, or tokio panics for want of one, there are no turns.
        let learned = learned.and_then(|thread| thread.join().ok());
        learned.unwrap_or_else(|| Learned::nothing(NoTurns::NotFound))
    });
}

fn layout(flavor: RuntimeFlavor) -> Result<&'static Layout, NoTurns> {
    let Some(learned) = LEARNED.get() else {
        return Err(NoTurns::NotFound);
    };
    let layout = match flavor {
        RuntimeFlavor::MultiThread => &learned.multi_thread,
        RuntimeFlavor::CurrentThread => &learned.current_thread,
        _ => return Err(NoTurns::NotFound),
    };
    layout.as_ref().map_err(|why| *why)
}

/// The system's monotonic clock, with which tokio notes when a worker resumed.
pub(super) fn monotonic() -> (u64, u32) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    (seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The pieces of memory that are read together.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    pieces: Vec<Piece>,
    /// The two clocks at the moment of the reading.
    at: Nanos,
    monotonic: (u64, u32),
}

impl Looks {
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
    }

    /// Reads all pieces that were asked for, in one system call.
    ///
    /// The clocks come first: what a look finds is then no older than it seems, if the watchdog
    /// loses its CPU meanwhile. If it loses it between the two clocks, they are taken again.
    pub(crate) fn read(&mut self) {
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            self.at = crate::clock::now();
            self.monotonic = monotonic();
            if crate::clock::now().since(self.at) < AT_ONCE {
                break;
            }
        }
        memory::read_all(&mut self.pieces);
    }

    /// The time before the last reading.
    pub(crate) fn read_at(&self) -> Nanos {
        self.at
    }

    fn ask(&mut self, address: u64, length: usize) -> usize {
        self.pieces.push(Piece::new(address, length));
        self.pieces.len() - 1
    }

    fn ask_near(&mut self, anchor: u64, layout: &Layout) -> usize {
        let (from, length) = layout.near_anchor();
        self.ask(anchor.wrapping_add_signed(from), length)
    }

    fn ask_call(&mut self, context: u64, layout: &Layout) -> Option<usize> {
        let call = layout.call?;
        Some(self.ask(context.wrapping_add_signed(call.at), 8))
    }

    fn ask_core(&mut self, core: u64, layout: &Layout) -> usize {
        let (from, length) = layout.in_core();
        self.ask(core + from as u64, length)
    }

    /// A point of the monotonic clock, converted to the shared clock. It may lie a little after the
    /// clocks were taken, and before the reading.
    fn on_shared_clock(&self, (seconds, nanos): (u64, u32)) -> Option<Nanos> {
        let then = Duration::new(seconds, nanos);
        let now = Duration::new(self.monotonic.0, self.monotonic.1);
        match now.checked_sub(then) {
            Some(ago) => Some(self.at.minus(ago)),
            None if then - now < LONGEST_READING => Some(self.at.plus(then - now)),
            None => None,
        }
    }
}

/// The threads that are inside some runtime, each with the address of its context.
#[derive(Debug, Default)]
pub(crate) struct Inside(Vec<(&'static Slot, u64)>);

impl Inside {
    /// Looks at all threads that have a slot, in one system call.
    pub(crate) fn look(looks: &mut Looks) -> Inside {
        let Ok(layout) = layout(RuntimeFlavor::MultiThread) else {
            return Inside::default();
        };
        let owned = |slot: &&'static Slot| slot.tenancy() % 2 == 1 && slot.anchor() != 0;
        let slots: Vec<&'static Slot> = crate::slot::all().filter(owned).collect();
        looks.clear();
        for slot in &slots {
            looks.ask(slot.anchor().wrapping_add_signed(layout.context), 8);
        }
        looks.read();
        let contexts = looks.pieces.iter().map(|piece| piece.word(0).unwrap_or(0));
        let inside = slots.into_iter().zip(contexts);
        Inside(inside.filter(|(_, context)| *context != 0).collect())
    }
}

/// One worker's words.
#[derive(Debug)]
pub(crate) struct Track {
    layout: Result<&'static Layout, NoTurns>,
    /// The address of the worker's core: one allocation that goes with the worker from thread to
    /// thread.
    core: Option<u64>,
    /// The count of parks at which the core first agreed with the published one.
    agreed_at: Option<u64>,
    /// The core has agreed at two different counts.
    is_proven: bool,
    /// The cores in a row that were another worker's.
    strangers: u8,
    /// The last one was met since [`take_stranger`](Self::take_stranger).
    is_stranger: bool,
    /// The thread, and the address of its context.
    context: Option<(Thread, u64)>,
    asked: Option<Asked>,
    /// The turn last seen, its thread, and the number of pulses that this thread had received after
    /// the look that met it first.
    last: Option<(u32, Thread, u64)>,
    /// The turn in which the worker was last seen parked, and the time at which it had resumed
    /// before that.
    parked_in: Option<(u32, (u64, u32))>,
    /// Turns counted so far.
    counted: u64,
    distrusted_until: Option<Nanos>,
}

/// The thread and the pieces that were asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    thread: Thread,
    pulses: u64,
    near: usize,
    core_word: Option<usize>,
    call: Option<usize>,
    core: Option<usize>,
}

/// The reason why a look has not found a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    /// Something has moved to another place, where the next look will find it.
    Moved,
    /// The thread or its worker is not there.
    Gone,
    /// A word has failed a check.
    Misbehaved,
}

impl Track {
    /// Begins to follow a worker of this flavor of runtime. There are no turns if they are not
    /// `wanted`.
    pub(crate) fn new(flavor: RuntimeFlavor, wanted: bool) -> Track {
        Track {
            layout: if wanted {
                layout(flavor)
            } else {
                Err(NoTurns::Off)
            },
            core: None,
            agreed_at: None,
            is_proven: false,
            strangers: 0,
            is_stranger: false,
            context: None,
            asked: None,
            last: None,
            parked_in: None,
            counted: 0,
            distrusted_until: None,
        }
    }

    /// The reason why there are no turns; `None` if there are, or will be once the worker's thread
    /// is found.
    pub(crate) fn missing(&self) -> Option<NoTurns> {
        match self.layout {
            Err(why) => Some(why),
            Ok(_) => self.distrusted_until.map(|_| NoTurns::Disproved),
        }
    }

    /// Turns counted so far.
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }

    /// The thread that holds this worker's core, independent of claims. Reads a word of each
    /// thread, in one system call.
    pub(crate) fn find(&self, inside: &Inside, looks: &mut Looks) -> Option<&'static Slot> {
        let (Ok(layout), Some(core)) = (self.layout, self.core) else {
            return None;
        };
        looks.clear();
        for (_, context) in &inside.0 {
            looks.ask(context + layout.core as u64, 8);
        }
        looks.read();
        let mut found = inside.0.iter().zip(&looks.pieces);
        found.find_map(|((slot, _), piece)| (piece.word(0) == Some(core)).then_some(*slot))
    }

    /// Whether the thread had the core of another worker: its claim is an old one.
    pub(crate) fn take_stranger(&mut self) -> bool {
        std::mem::take(&mut self.is_stranger)
    }

    /// Takes back what it has asked for.
    pub(crate) fn withdraw(&mut self) {
        self.asked = None;
    }

    /// Asks for the words of the worker that this thread claims to drive.
    pub(crate) fn ask(&mut self, slot: &Slot, tenancy: u64, looks: &mut Looks) {
        self.asked = None;
        let Ok(layout) = self.layout else {
            return;
        };
        if self.is_distrusted() {
            return;
        }
        let thread = slot.thread(tenancy);
        let context = self.context.filter(|(of, _)| *of == thread);
        let context = context.map(|(_, address)| address);
        self.asked = Some(Asked {
            thread,
            pulses: slot.loops(),
            near: looks.ask_near(slot.anchor(), layout),
            core_word: context.map(|context| looks.ask(context + layout.core as u64, 8)),
            call: context.and_then(|context| looks.ask_call(context, layout)),
            core: self.core.map(|core| looks.ask_core(core, layout)),
        });
    }

    /// Takes the words that were read. `published` is the number of parks and unparks that tokio
    /// had published, by the last look before the reading and by one after it; `pulses` is the
    /// number of pulses of the thread after it. Returns `None` if another look is needed, and
    /// `Some(None)` if there is no turn.
    pub(crate) fn take(
        &mut self,
        looks: &Looks,
        published: RangeInclusive<u64>,
        pulses: u64,
    ) -> Option<Option<Turn>> {
        let (Ok(layout), Some(asked)) = (self.layout, self.asked.take()) else {
            return Some(None);
        };
        match self.look(layout, &asked, looks, published, pulses) {
            Ok(turn) => Some(Some(turn)),
            Err(Miss::Gone) => Some(None),
            Err(Miss::Moved) => None,
            Err(Miss::Misbehaved) => {
                self.drop_words(looks.at);
                Some(None)
            }
        }
    }

    fn drop_words(&mut self, now: Nanos) {
        self.forget_core();
        self.context = None;
        self.strangers = 0;
        self.distrusted_until = Some(now.plus(DISTRUST));
    }

    fn forget_core(&mut self) {
        self.core = None;
        self.agreed_at = None;
        self.is_proven = false;
        self.last = None;
        self.parked_in = None;
    }

    /// A look has failed a check. Before the core has proved itself, the claim is doubted first.
    fn doubt(&mut self) -> Miss {
        if self.is_proven || self.strangers == MOST_STRANGERS {
            return Miss::Misbehaved;
        }
        self.strangers += 1;
        self.forget_core();
        self.is_stranger = true;
        Miss::Gone
    }

    /// The core has agreed at this count of parks.
    fn note_agreement(&mut self, parks: u64) {
        let agreed_at = *self.agreed_at.get_or_insert(parks);
        self.is_proven |= agreed_at != parks;
        if self.is_proven {
            self.strangers = 0;
        }
    }

    fn look(
        &mut self,
        layout: &Layout,
        asked: &Asked,
        looks: &Looks,
        published: RangeInclusive<u64>,
        pulses: u64,
    ) -> Result<Turn, Miss> {
        let near = AnchorWords::of(&looks.pieces[asked.near], layout).ok_or(Miss::Gone)?;
        let held = self.held_core(&near, asked, looks)?;
        let core = self.core_words(layout, asked, looks)?;
        let has_core = self.core == Some(held);
        // The worker's own count may be one ahead of the published one.
        let parks = *published.start()..=published.end().saturating_add(1);
        let moves = self.count_turns(core.turn, asked, pulses, has_core);
        if !parks.contains(&core.parks) || !moves {
            return Err(self.doubt());
        }
        self.note_agreement(core.parks);
        self.distrusted_until = None;
        let call = asked.call.and_then(|index| looks.pieces[index].word(0));
        let id = layout.poll_id(&near, &core, call);
        let resumed = looks.on_shared_clock(core.resumed);
        self.note_parked(&core);
        let is_first = self.is_first_since_parked(layout, id, &core);
        Ok(Turn {
            id,
            has_core,
            task: near.task,
            resumed,
            begun: resumed.filter(|_| is_first),
        })
    }

    /// The core that the thread's context holds, 0 for none.
    fn held_core(&mut self, near: &AnchorWords, asked: &Asked, looks: &Looks) -> Result<u64, Miss> {
        let known = self.context == Some((asked.thread, near.context));
        if near.context != 0 && !known {
            self.context = Some((asked.thread, near.context));
            return Err(Miss::Moved);
        }
        let held = asked
            .core_word
            .and_then(|index| looks.pieces[index].word(0));
        let held = held.filter(|_| known).unwrap_or(0);
        if held != 0 && self.core.is_none() {
            self.core = Some(held);
            return Err(Miss::Moved);
        }
        Ok(held)
    }

    fn core_words(
        &mut self,
        layout: &Layout,
        asked: &Asked,
        looks: &Looks,
    ) -> Result<CoreWords, Miss> {
        let piece = asked.core.map(|index| &looks.pieces[index]);
        CoreWords::of(piece.ok_or(Miss::Gone)?, layout).ok_or_else(|| {
            // The runtime has been shut down.
            self.forget_core();
            Miss::Gone
        })
    }

    /// Remembers the turn of a parked worker.
    fn note_parked(&mut self, core: &CoreWords) {
        if core.parks % 2 == 1 {
            self.parked_in = Some((core.turn, core.resumed));
        }
    }

    fn is_first_since_parked(&self, layout: &Layout, id: PollId, core: &CoreWords) -> bool {
        // Right after a worker has woken, its word is still that of the time before.
        self.parked_in
            .is_some_and(|(parked, resumed)| layout.is_first(id, parked) && core.resumed != resumed)
    }

    /// Counts the turns. Returns whether they move with the pulses that this thread polls, each of
    /// which takes a turn.
    fn count_turns(&mut self, turn: u32, asked: &Asked, pulses: u64, has_core: bool) -> bool {
        match &mut self.last {
            Some((last, thread, at_first)) if *last == turn => {
                if *thread != asked.thread || !has_core {
                    (*thread, *at_first) = (asked.thread, pulses);
                }
                // The turn was seen after these.
                asked.pulses.saturating_sub(*at_first) <= PULSES_IN_A_TURN
            }
            last => {
                if let Some((before, ..)) = last {
                    self.counted += u64::from(turn.wrapping_sub(*before));
                }
                // It may have begun after the thread was asked for.
                *last = Some((turn, asked.thread, pulses));
                true
            }
        }
    }

    fn is_distrusted(&self) -> bool {
        self.distrusted_until
            .is_some_and(|until| crate::clock::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stage;
    use super::super::layout::{CallWord, LastFlag};
    use super::*;
    use std::mem::offset_of;

    /// The memory of a worker and its thread, in the layout of an imaginary tokio.
    #[repr(C)]
    struct Memory {
        context: u64,
        task: u64,
        core: u64,
        call: u64,
        turn: u32,
        last: u8,
        parks: u64,
        resumed: (u64, u32),
    }

    const CALL: CallWord = CallWord {
        at: 8,
        queue: 100,
        next: 200,
    };

    fn layout(multi_thread: bool) -> &'static Layout {
        let core = offset_of!(Memory, turn);
        Box::leak(Box::new(Layout {
            task: offset_of!(Memory, task) as i64,
            context: 0,
            core: 0,
            turn: 0,
            parks: offset_of!(Memory, parks) - core,
            resumed: offset_of!(Memory, resumed) - core,
            last: multi_thread.then_some(LastFlag {
                at: offset_of!(Memory, last) - core,
                value: 1,
            }),
            call: multi_thread.then_some(CALL),
        }))
    }

    /// A worker in a poll, its memory, and the track that follows it.
    struct World {
        memory: Box<Memory>,
        slot: Slot,
        track: Track,
        published: u64,
    }

    impl World {
        fn new(multi_thread: bool) -> World {
            let mut memory = Box::new(Memory {
                context: 0,
                task: 7,
                core: 0,
                call: CALL.queue,
                turn: 40,
                last: 0,
                parks: 4,
                resumed: (0, 0),
            });
            memory.context = &raw const memory.core as u64;
            memory.core = &raw const memory.turn as u64;
            let slot = Slot::owned();
            slot.introduce(1, (0, 0), &raw const *memory as u64, "worker");
            let track = Track {
                layout: Ok(layout(multi_thread)),
                ..Track::new(RuntimeFlavor::MultiThread, true)
            };
            World {
                memory,
                slot,
                track,
                published: 4,
            }
        }

        /// One tick's looks at the worker.
        fn look(&mut self) -> Option<Turn> {
            let mut looks = Looks::default();
            for _ in 0..3 {
                looks.clear();
                self.track.ask(&self.slot, 1, &mut looks);
                looks.read();
                let published = self.published..=self.published;
                let pulses = self.slot.loops();
                if let Some(turn) = self.track.take(&looks, published, pulses) {
                    return turn;
                }
            }
            panic!("nothing comes to rest in three looks");
        }

        fn id(&mut self) -> PollId {
            self.look().expect("turns are seen").id
        }
    }

    #[test]
    fn the_first_tick_finds_everything() {
        let mut world = World::new(true);
        let turn = world.look().unwrap();
        assert!(turn.has_core);
        assert_eq!(turn.task, 7);
        let id = PollId {
            turn: 40,
            stage: Stage::Queue,
            task: 1,
            resumed: (0, 0),
        };
        assert_eq!(turn.id, id);
        assert_eq!(world.id(), id, "the same poll");
        for (call, last, stage) in [
            (CALL.next, 0, Stage::Next),
            (CALL.next, 1, Stage::Last),
            (3, 0, Stage::Unclear),
        ] {
            world.memory.call = call;
            world.memory.last = last;
            assert_eq!(world.id().stage, stage);
        }
    }

    #[test]
    fn tasks_that_a_poll_runs_or_drops_do_not_make_it_another_one() {
        for (call, last) in [(CALL.queue, 0), (CALL.next, 1)] {
            let mut world = World::new(true);
            (world.memory.call, world.memory.last) = (call, last);
            let id = world.id();
            world.memory.task = 8;
            let other = world.look().unwrap();
            assert_eq!((other.id, other.task), (id, 8));
            world.memory.task = 0;
            assert_ne!(world.id(), id, "between polls");
        }
        let mut world = World::new(true);
        world.memory.call = CALL.next;
        let id = world.id();
        world.memory.task = 8;
        assert_ne!(world.id(), id, "the first and the second from the slot");
    }

    #[test]
    fn on_current_thread_the_turn_and_the_resumption_are_the_poll() {
        let mut world = World::new(false);
        let id = world.id();
        for task in [8, 0] {
            world.memory.task = task;
            assert_eq!(world.id(), id, "a task of a `LocalSet`, and none");
        }
        world.memory.resumed = (0, 1);
        let next_call = world.id();
        assert_ne!(next_call, id);
        world.memory.turn += 1;
        assert_ne!(world.id(), next_call);
    }

    #[test]
    fn a_thread_without_a_core_has_left_its_worker() {
        let mut world = World::new(true);
        assert!(world.look().unwrap().has_core);
        let core = std::mem::take(&mut world.memory.core);
        assert!(!world.look().unwrap().has_core, "it is in `block_in_place`");
        world.memory.core = core + 8;
        assert!(!world.look().unwrap().has_core, "it has another worker's");
        world.memory.core = core;
        assert!(world.look().unwrap().has_core);
        world.memory.context = 0;
        assert!(!world.look().unwrap().has_core, "it is in no runtime");
    }

    #[test]
    fn a_core_that_counts_other_parks_is_dropped_and_looked_for_again() {
        let mut world = World::new(true);
        assert!(world.look().is_some() && world.track.missing().is_none());
        world.memory.parks = 5;
        assert!(world.look().is_some(), "not published yet");
        world.memory.parks = 6;
        assert_eq!(world.look(), None);
        assert_eq!(world.track.missing(), Some(NoTurns::Disproved));
        world.memory.parks = 4;
        assert_eq!(world.look(), None, "left alone for a while");
        world.track.distrusted_until = Some(Nanos(1));
        assert!(world.look().is_some());
        assert_eq!(world.track.missing(), None);
    }

    /// The thread has left its worker in `block_in_place`, and drives another one.
    #[test]
    fn a_core_of_another_worker_disproves_the_claim_and_no_word() {
        let (mut world, mut other) = (World::new(true), World::new(true));
        other.memory.parks = 9;
        let own = std::mem::replace(&mut world.memory.core, other.memory.core);
        assert_eq!(world.look(), None, "9 parks, and 4 are published");
        assert!(world.track.take_stranger() && !world.track.take_stranger());
        assert_eq!(world.track.missing(), None);
        world.memory.core = own;
        assert!(world.look().is_some_and(|turn| turn.has_core));
        assert!(!world.track.take_stranger());
    }

    #[test]
    fn one_count_that_agrees_may_be_a_chance() {
        let mut world = World::new(true);
        assert!(world.look().is_some(), "4 and 4");
        world.published = 7;
        assert_eq!(world.look(), None);
        assert!(world.track.take_stranger());
        assert_eq!(world.track.missing(), None);
    }

    #[test]
    fn words_that_never_agree_are_disproved() {
        let mut world = World::new(true);
        world.published = 9;
        for _ in 0..MOST_STRANGERS {
            assert_eq!((world.look(), world.track.missing()), (None, None));
            assert!(world.track.take_stranger());
        }
        assert_eq!(world.look(), None);
        assert_eq!(world.track.missing(), Some(NoTurns::Disproved));
    }

    #[test]
    fn a_word_that_stands_still_with_pulses_does_not_count_turns() {
        let mut world = World::new(true);
        world.look();
        for _ in 0..PULSES_IN_A_TURN {
            world.slot.reset_marks();
        }
        assert!(world.look().is_some());
        world.memory.turn += 1;
        assert!(world.look().is_some());
        for _ in 0..=PULSES_IN_A_TURN {
            world.slot.reset_marks();
        }
        assert_eq!(world.look(), None);
        assert_eq!(world.track.counted(), 1);
    }

    #[test]
    fn pulses_before_a_turn_is_met_are_of_the_turns_before() {
        let mut world = World::new(true);
        world.look();
        world.memory.turn += 1;
        // The thread goes on between the two looks of a tick.
        let mut looks = Looks::default();
        world.track.ask(&world.slot, 1, &mut looks);
        for _ in 0..=PULSES_IN_A_TURN {
            world.slot.reset_marks();
        }
        looks.read();
        let published = world.published..=world.published;
        let taken = world.track.take(&looks, published, world.slot.loops());
        assert!(taken.is_some_and(|turn| turn.is_some()));
        assert!(world.look().is_some());
        assert_eq!(world.track.missing(), None);
    }

    #[test]
    fn a_poll_is_known_from_its_beginning_if_it_is_the_first_since_the_worker_woke() {
        for (multi_thread, turns, task) in [(true, 1, 7), (false, 0, 0)] {
            let mut world = World::new(multi_thread);
            (world.memory.parks, world.published) = (5, 5);
            world.look();
            (world.memory.parks, world.published) = (6, 6);
            world.memory.turn += turns;
            world.memory.task = task;
            assert_eq!(world.look().unwrap().begun, None, "the word is not new yet");
            world.memory.resumed = monotonic();
            let before = crate::clock::now();
            let begun = world.look().unwrap().begun.expect("it has just begun");
            assert!(begun <= before && before.since(begun) < Duration::from_secs(1));
            world.memory.turn += 1;
            world.memory.task = 8;
            assert_eq!(world.look().unwrap().begun, None, "the next one");
        }
    }

    #[test]
    fn memory_that_is_gone_is_no_turn() {
        let mut world = World::new(true);
        world.look();
        world.slot.introduce(1, (0, 0), 8, "worker");
        assert_eq!(world.look(), None);
    }
}
