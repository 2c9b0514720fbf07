//! The stacks of all stalls, each with its labels and its weight: one table for every profile.
//!
//! *Runs on:* `stall-reporter` adds; threads that use a guard, and `stall-serve`, read a copy.
//!
//! Calls and texts are kept once each. The table has at most [`STACKS`] stacks, [`CALLS`] calls and
//! [`TEXT`] bytes of names; the names of runtimes come on top. A stack has at most 512 calls of
//! 4 bytes, so a table takes 14 MiB at most. A usual stack has 40 calls, and a full table then
//! takes about 2 MiB. A stack that does not fit is counted under its runtime and cause alone.

use super::cause::Cause;
use super::frame::{Frame, Origin};
use super::site;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The most stacks that are kept apart.
pub(super) const STACKS: usize = 4096;
/// The most calls that are kept apart, each a function with a line.
const CALLS: usize = 16 * 1024;
/// The most bytes of all names together.
const TEXT: usize = 4 * 1024 * 1024;

/// One call, as the report of the stall names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(dead_code)] // A folded profile has names only.
pub(super) struct ProfiledCall {
    /// The function as in the source, or the module and the address in it.
    pub(super) name: Arc<str>,
    /// The function with generic arguments and closures.
    pub(super) full_name: Option<Arc<str>>,
    pub(super) file: Option<Arc<str>>,
    pub(super) line: Option<u32>,
    pub(super) module: Option<Arc<str>>,
    pub(super) build_id: Option<Arc<str>>,
    /// The address in the module, of a call without a name: a tool may name it later.
    pub(super) offset: Option<u64>,
    /// Whether the next call further out contains its code.
    pub(super) inlined: bool,
    pub(super) is_own: bool,
}

/// The calls of a stack, or the reason why it has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum StackCalls {
    /// Indices of calls, innermost first.
    Known(Arc<[u32]>),
    /// No stack was taken.
    NoStack,
    /// The table was full.
    Other,
}

/// The things that make two stacks different.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct StackKey {
    pub(super) runtime: Arc<str>,
    /// Without fields.
    pub(super) span: Option<Arc<str>>,
    pub(super) cause: Cause,
    pub(super) calls: StackCalls,
}

/// The weight of a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(dead_code)] // A folded profile has no stalls.
pub(super) struct Weight {
    /// The stalls for which it is the representative stack.
    pub(super) stalls: u64,
    /// How often it was found.
    pub(super) samples: u64,
    /// Its share of the time lost.
    pub(super) time: Duration,
}

impl Weight {
    fn add(&mut self, other: Weight) {
        self.stalls += other.stalls;
        self.samples += other.samples;
        self.time += other.time;
    }
}

/// The labels of a stall.
#[derive(Clone, Copy, Debug)]
pub(super) struct Labels<'a> {
    pub(super) runtime: &'a str,
    pub(super) span: Option<&'a str>,
    pub(super) cause: Cause,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub(super) struct StackTable {
    stacks: HashMap<StackKey, Weight>,
    calls: Vec<Arc<ProfiledCall>>,
    numbers: HashMap<Arc<ProfiledCall>, u32>,
    texts: HashSet<Arc<str>>,
    /// The bytes of `texts`.
    size: usize,
}

impl StackTable {
    /// Adds a stack as it was taken. The calls further out than the poll are tokio's and always the
    /// same; they are left out.
    pub(super) fn add(&mut self, labels: Labels<'_>, frames: &[Frame], weight: Weight) {
        let poll = site::of_the_poll(frames).iter();
        let shown = poll.filter(|frame| frame.origin != Origin::Detector);
        let numbers: Option<Vec<u32>> = shown
            .map(|frame| {
                let call = self.call_of(frame)?;
                self.number(call)
            })
            .collect();
        let calls = numbers.map_or(StackCalls::Other, |numbers| {
            StackCalls::Known(numbers.into())
        });
        self.add_calls(labels, calls, weight);
    }

    /// Adds a stall of which no stack was taken.
    pub(super) fn add_without_stack(&mut self, labels: Labels<'_>, weight: Weight) {
        self.add_calls(labels, StackCalls::NoStack, weight);
    }

    /// Adds all of another table.
    pub(super) fn merge(&mut self, other: &StackTable) {
        let translated: Vec<Option<u32>> = other
            .calls
            .iter()
            .map(|call| {
                let call = self.adopted(call)?;
                self.number(call)
            })
            .collect();
        for (key, weight) in &other.stacks {
            let labels = Labels {
                runtime: &key.runtime,
                span: key.span.as_deref(),
                cause: key.cause,
            };
            let calls = match &key.calls {
                StackCalls::Known(calls) => {
                    let calls = calls.iter().map(|number| translated[*number as usize]);
                    let calls: Option<Vec<u32>> = calls.collect();
                    calls.map_or(StackCalls::Other, |calls| StackCalls::Known(calls.into()))
                }
                without => without.clone(),
            };
            self.add_calls(labels, calls, *weight);
        }
    }

    /// All stacks, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&StackKey, &Weight)> {
        self.stacks.iter()
    }

    /// The calls of a stack, innermost first, with their numbers. None if they are not known.
    pub(super) fn calls<'a>(
        &'a self,
        calls: &'a StackCalls,
    ) -> impl DoubleEndedIterator<Item = (u32, &'a ProfiledCall)> {
        let numbers: &[u32] = match calls {
            StackCalls::Known(numbers) => numbers,
            StackCalls::NoStack | StackCalls::Other => &[],
        };
        let numbers = numbers.iter();
        numbers.map(|number| (*number, &*self.calls[*number as usize]))
    }

    fn add_calls(&mut self, labels: Labels<'_>, calls: StackCalls, weight: Weight) {
        let key = StackKey {
            // A watch has few runtimes, and each is told apart even in a full table.
            runtime: self.keep(labels.runtime),
            span: None,
            cause: labels.cause,
            calls,
        };
        let span = self.text_if_any(labels.span);
        let key = span
            .map(|span| StackKey {
                span,
                ..key.clone()
            })
            .filter(|key| self.takes(key))
            .unwrap_or_else(|| without_calls(key));
        self.stacks.entry(key).or_default().add(weight);
    }

    /// Whether the key is there, or there is room for it.
    fn takes(&self, key: &StackKey) -> bool {
        let is_new = !self.stacks.contains_key(key);
        key.calls != StackCalls::Other && !(is_new && self.stacks.len() >= STACKS)
    }

    /// The number of a call. `None` if there is no room for a new one.
    fn number(&mut self, call: ProfiledCall) -> Option<u32> {
        if let Some(number) = self.numbers.get(&call) {
            return Some(*number);
        }
        let number = u32::try_from(self.calls.len()).ok()?;
        if self.calls.len() >= CALLS {
            return None;
        }
        let call = Arc::new(call);
        self.calls.push(call.clone());
        self.numbers.insert(call, number);
        Some(number)
    }

    fn call_of(&mut self, frame: &Frame) -> Option<ProfiledCall> {
        let name = frame.written_name().unwrap_or_else(|| frame.to_string());
        Some(ProfiledCall {
            name: self.text(&name)?,
            full_name: self.text_if_any(frame.function.as_deref())?,
            file: self.text_if_any(frame.file.as_deref())?,
            line: frame.line,
            module: self.text_if_any(frame.module.as_deref())?,
            build_id: self.text_if_any(frame.build_id.as_deref())?,
            offset: frame.function.is_none().then_some(frame.offset),
            inlined: frame.inlined,
            is_own: frame.origin == Origin::Own,
        })
    }

    /// The call of another table, with texts of this one.
    fn adopted(&mut self, call: &ProfiledCall) -> Option<ProfiledCall> {
        Some(ProfiledCall {
            name: self.text(&call.name)?,
            full_name: self.text_if_any(call.full_name.as_deref())?,
            file: self.text_if_any(call.file.as_deref())?,
            module: self.text_if_any(call.module.as_deref())?,
            build_id: self.text_if_any(call.build_id.as_deref())?,
            ..*call
        })
    }

    /// No text, or the one copy of it. The outer `None` if there is no room for it.
    fn text_if_any(&mut self, text: Option<&str>) -> Option<Option<Arc<str>>> {
        match text {
            Some(text) => self.text(text).map(Some),
            None => Some(None),
        }
    }

    /// The one copy of a text. `None` if there is no room for it.
    fn text(&mut self, text: &str) -> Option<Arc<str>> {
        let fits = self.size + text.len() <= TEXT || self.texts.contains(text);
        fits.then(|| self.keep(text))
    }

    fn keep(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.size += text.len();
        self.texts.insert(text.clone());
        text
    }
}

/// The key for all that does not fit: a few for each runtime.
fn without_calls(key: StackKey) -> StackKey {
    let calls = match key.calls {
        StackCalls::NoStack => StackCalls::NoStack,
        StackCalls::Known(_) | StackCalls::Other => StackCalls::Other,
    };
    StackKey {
        span: None,
        calls,
        ..key
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LABELS: Labels<'static> = Labels {
        runtime: "api",
        span: Some("request"),
        cause: Cause::Cpu,
    };

    const ONE: Weight = Weight {
        stalls: 1,
        samples: 1,
        time: Duration::from_millis(1),
    };

    fn add(table: &mut StackTable, function: &str) {
        table.add(LABELS, &[Frame::of(function, Origin::Own)], ONE);
    }

    fn total(table: &StackTable) -> Weight {
        let mut total = Weight::default();
        table.iter().for_each(|(_, weight)| total.add(*weight));
        total
    }

    fn other(table: &StackTable) -> Weight {
        let others = table
            .iter()
            .filter(|(key, _)| key.calls == StackCalls::Other);
        let mut others = others.map(|(key, weight)| {
            assert_eq!(
                (&*key.runtime, &key.span, key.cause),
                ("api", &None, Cause::Cpu)
            );
            *weight
        });
        let weight = others.next().unwrap_or_default();
        assert_eq!(others.next(), None, "one for all");
        weight
    }

    #[test]
    fn a_full_table_keeps_runtime_and_cause_and_no_time_is_lost() {
        let mut table = StackTable::default();
        for number in 0..STACKS {
            add(&mut table, &format!("app::f{number}"));
        }
        assert_eq!(other(&table), Weight::default());
        for number in 0..STACKS + 10 {
            add(&mut table, &format!("app::f{number}"));
        }
        assert_eq!(table.iter().count(), STACKS + 1);
        assert_eq!(other(&table).stalls, 10);
        assert_eq!(
            total(&table).time,
            Duration::from_millis(2 * STACKS as u64 + 10)
        );
    }

    #[test]
    fn long_names_have_a_limit_together() {
        let mut table = StackTable::default();
        let long = "x".repeat(TEXT / 4);
        (0..8).for_each(|number| add(&mut table, &format!("app::{long}{number}")));
        assert!(table.size < TEXT + 100, "{}", table.size);
        assert_eq!(total(&table).stalls, 8);
        let kept = table.iter().count() - 1;
        assert!((1..8).contains(&kept), "{kept}");
        assert_eq!(other(&table).stalls, 8 - kept as u64);
    }

    #[test]
    fn calls_have_a_limit() {
        let mut table = StackTable::default();
        let deep = |nth: usize| -> Vec<Frame> {
            let names = (0..512).map(|call| format!("f{nth}_{call}"));
            names.map(|name| Frame::of(&name, Origin::Own)).collect()
        };
        (0..40).for_each(|nth| table.add(LABELS, &deep(nth), ONE));
        assert_eq!(table.calls.len(), CALLS);
        assert_eq!(other(&table).stalls, 40 - CALLS as u64 / 512);
        // A known stack is counted as before.
        table.add(LABELS, &deep(0), ONE);
        assert_eq!(other(&table).stalls, 40 - CALLS as u64 / 512);
    }

    #[test]
    fn stacks_of_two_tables_are_the_same_by_their_names() {
        let mut one = StackTable::default();
        let mut two = StackTable::default();
        ["a::x", "a::y"].iter().for_each(|name| add(&mut one, name));
        ["a::y", "a::z"].iter().for_each(|name| add(&mut two, name));
        two.add_without_stack(LABELS, ONE);
        one.merge(&two);
        let mut stacks: Vec<(String, u64)> = one
            .iter()
            .map(|(key, weight)| {
                let names = one.calls(&key.calls).map(|(_, call)| &*call.name);
                (names.collect(), weight.stalls)
            })
            .collect();
        stacks.sort();
        let expected = [("", 1), ("a::x", 1), ("a::y", 2), ("a::z", 1)];
        assert_eq!(
            stacks,
            expected.map(|(name, count)| (name.to_owned(), count))
        );
    }
}
