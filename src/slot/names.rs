//! Static names as small numbers, so that a mark can store a name in one word.
//!
//! *Runs on:* the thread that first uses a name, which allocates; any thread afterwards.
//! *Must not:* take a lock to find a known name: the buckets are lists that only grow at their
//! ends.
//!
//! Names are never freed. The table is bounded by the names in the program's text.

use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A name with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Text(&'static str),
    #[allow(dead_code)] // Only tokio's unstable hooks have places.
    Place(&'static Location<'static>),
}

impl Name {
    /// The address and length of the name. The same text at two addresses has two numbers.
    fn key(self) -> (usize, usize) {
        match self {
            Name::Text(text) => (text.as_ptr() as usize, text.len()),
            Name::Place(place) => (std::ptr::from_ref(place) as usize, usize::MAX),
        }
    }
}

#[derive(Debug)]
struct Node {
    name: Name,
    number: u32,
    next: OnceLock<&'static Node>,
}

const BUCKETS: usize = 256;

static TABLE: [OnceLock<&'static Node>; BUCKETS] = [const { OnceLock::new() }; BUCKETS];
/// Zero means "no name".
static NUMBERS: AtomicU32 = AtomicU32::new(1);

/// The first names again, by number; more than most programs have.
static BY_NUMBER: [OnceLock<Name>; 256] = [const { OnceLock::new() }; 256];

/// The number of a name.
///
/// # Cost
///
/// A hash of the address and, for a known name, a step or two along a list. A new name allocates.
pub(crate) fn number(name: Name) -> u32 {
    let (address, length) = name.key();
    let mut link = &TABLE[(address >> 3 ^ address >> 11) % BUCKETS];
    loop {
        let node = link.get_or_init(|| new_node(name));
        if node.name.key() == (address, length) {
            return node.number;
        }
        link = &node.next;
    }
}

/// Gives a new name its number.
fn new_node(name: Name) -> &'static Node {
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    if let Some(place) = BY_NUMBER.get(number as usize) {
        // The number is new, so the place is free.
        place.set(name).ok();
    }
    Box::leak(Box::new(Node {
        name,
        number,
        next: OnceLock::new(),
    }))
}

/// The name with this number.
///
/// # Cost
///
/// One load for one of the first 255 names; for later ones, a walk through the whole table.
#[inline]
pub(crate) fn name(number: u32) -> Option<Name> {
    match BY_NUMBER.get(number as usize) {
        Some(place) => place.get().copied(),
        None => search(number),
    }
}

#[cold]
fn search(number: u32) -> Option<Name> {
    TABLE
        .iter()
        .flat_map(|first| {
            std::iter::successors(first.get().copied(), |node| node.next.get().copied())
        })
        .find(|node| node.number == number)
        .map(|node| node.name)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let first = number(Name::Text("names::a_name_keeps_its_number"));
        assert_eq!(number(Name::Text("names::a_name_keeps_its_number")), first);
        assert_eq!(
            name(first),
            Some(Name::Text("names::a_name_keeps_its_number"))
        );
        assert_ne!(first, 0);
    }

    #[test]
    fn names_after_the_first_ones_are_found_too() {
        let texts = (0..300).map(|index| &*format!("names::later {index}").leak());
        for text in texts {
            assert_eq!(name(number(Name::Text(text))), Some(Name::Text(text)));
        }
    }

    #[test]
    fn threads_agree_on_numbers() {
        static TEXT: &str = "names::threads_agree_on_numbers";
        let numbers: Vec<_> = (0..8)
            .map(|_| std::thread::spawn(|| number(Name::Text(TEXT))))
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(numbers.iter().all(|number| *number == numbers[0]));
    }

    #[test]
    fn places_and_texts_do_not_mix() {
        let place = Location::caller();
        let number_of_place = number(Name::Place(place));
        assert_eq!(name(number_of_place), Some(Name::Place(place)));
        assert_eq!(name(0), None);
    }
}
