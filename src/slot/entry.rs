//! One mark is a kind and a number; the kinds of all open marks pack into one word.
//!
//! *Runs on:* worker threads, inside every poll; readers.
//! *Must not:* do more than arithmetic on two words.

/// Names a slot keeps. Deeper marks are counted and overwrite the last place, so that the outermost
/// names and the innermost one survive.
pub(crate) const ENTRIES: usize = 10;

/// Span registries (tracing subscribers with this crate's layer) that have numbers at one time.
pub(crate) const SOURCES: u8 = 12;

/// The meaning of an entry's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An index into the table of names: `watched("name")`.
    Name,
    /// A task id, from the runtime's own hooks.
    Task,
    /// A span id in the registry with this number.
    Span(u8),
    /// A span id in a registry without a number: a mark without a name.
    Unknown,
}

impl Kind {
    /// Four bits; zero is left for "no entry".
    pub(crate) const fn bits(self) -> u64 {
        match self {
            Kind::Name => 1,
            Kind::Task => 2,
            Kind::Span(source) if source < SOURCES => 3 + source as u64,
            Kind::Span(_) | Kind::Unknown => 15,
        }
    }

    fn from_bits(bits: u64) -> Kind {
        match bits {
            1 => Kind::Name,
            2 => Kind::Task,
            3..15 => Kind::Span((bits - 3) as u8),
            _ => Kind::Unknown,
        }
    }
}

/// One mark, as read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
}

/// A kind, ready to be stored: the [`Shape`] of a poll with one mark of this kind and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u32);

impl Mark {
    pub(crate) const NAME: Mark = Mark::of(Kind::Name);
    #[allow(dead_code)] // Only tokio's unstable hooks have tasks.
    pub(crate) const TASK: Mark = Mark::of(Kind::Task);
    pub(crate) const UNKNOWN: Mark = Mark::of(Kind::Unknown);

    pub(crate) const fn of(kind: Kind) -> Mark {
        Mark(1 | (kind.bits() as u32) << DEPTH_BITS)
    }

    /// The mark as a number, to be kept in an atomic.
    pub(crate) const fn to_raw(self) -> u32 {
        self.0
    }

    /// The mark from a number that [`to_raw`](Mark::to_raw) returned.
    #[inline]
    pub(crate) const fn from_raw(raw: u32) -> Mark {
        Mark(raw)
    }
}

/// Depth and kinds of the marks in one word, so that a push or a pop is one store for all of them:
/// 16 bits of depth, then four bits of kind for each entry, the innermost first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape(pub(crate) u64);

const DEPTH_BITS: u32 = 16;
const DEPTH_MASK: u64 = (1 << DEPTH_BITS) - 1;
const KIND_BITS: u32 = 4;

const _: () = assert!(
    DEPTH_BITS as usize + KIND_BITS as usize * ENTRIES <= 64,
    "depth and all kinds must fit in one word"
);

impl Shape {
    /// The shape of a poll with this mark alone.
    #[inline]
    pub(crate) fn one(mark: Mark) -> Shape {
        Shape(mark.0.into())
    }

    /// The number of open marks, with those too deep to be kept.
    #[inline]
    pub(crate) fn depth(self) -> usize {
        (self.0 & DEPTH_MASK) as usize
    }

    /// The shape with one more mark. `None` at a depth that only leaked marks can reach.
    #[inline]
    pub(crate) fn pushed(self, mark: Mark) -> Option<Shape> {
        let depth = self.depth();
        if depth >= ENTRIES {
            return (depth as u64 != DEPTH_MASK).then_some(Shape(self.0 + 1));
        }
        let kinds = (self.0 & !DEPTH_MASK) << KIND_BITS;
        // The mark brings its kind and a depth of one.
        Some(Shape((kinds | depth as u64) + u64::from(mark.0)))
    }

    /// The shape with one mark fewer; the caller has seen that there is one.
    #[inline]
    pub(crate) fn popped(self) -> Shape {
        let depth = self.depth();
        debug_assert!(depth > 0);
        if depth > ENTRIES {
            return Shape(self.0 - 1);
        }
        Shape((self.0 >> KIND_BITS & !DEPTH_MASK) | (depth as u64 - 1))
    }

    /// The kind of the mark at `index`, counted from the outermost; `index` is below the depth, and
    /// below [`ENTRIES`].
    pub(crate) fn kind(self, index: usize) -> Kind {
        let inside_of_it = self.depth().min(ENTRIES) - 1 - index;
        Kind::from_bits(self.0 >> (DEPTH_BITS + KIND_BITS * inside_of_it as u32) & 15)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_packing_at_every_depth() {
        let kinds = [
            Kind::Name,
            Kind::Task,
            Kind::Span(0),
            Kind::Span(11),
            Kind::Unknown,
        ];
        let mut shape = Shape::default();
        for depth in 0..ENTRIES {
            let mark = Mark::of(kinds[depth % kinds.len()]);
            shape = shape.pushed(mark).unwrap();
        }
        for depth in 0..ENTRIES {
            assert_eq!(shape.kind(depth), kinds[depth % kinds.len()]);
        }
    }

    #[test]
    fn pops_undo_pushes_also_beyond_the_kept_entries() {
        let mut shapes = vec![Shape::default()];
        for _ in 0..ENTRIES + 5 {
            let mark = Mark::of(Kind::Span(3));
            shapes.push(shapes.last().unwrap().pushed(mark).unwrap());
        }
        while shapes.len() > 1 {
            let top = shapes.pop().unwrap();
            assert_eq!(top.popped(), *shapes.last().unwrap());
        }
    }

    #[test]
    fn depth_stops_instead_of_spilling_into_the_kinds() {
        let mut shape = Shape(DEPTH_MASK - 1);
        shape = shape.pushed(Mark::NAME).unwrap();
        assert_eq!(shape.pushed(Mark::NAME), None);
    }

    #[test]
    fn a_mark_alone_is_a_push_onto_nothing() {
        for kind in [Kind::Name, Kind::Task, Kind::Span(11), Kind::Unknown] {
            let mark = Mark::of(kind);
            assert_eq!(Some(Shape::one(mark)), Shape::default().pushed(mark));
            assert_eq!(Mark::from_raw(mark.to_raw()), mark);
        }
    }

    #[test]
    fn a_source_beyond_the_table_is_unknown() {
        assert_eq!(Kind::from_bits(Kind::Span(SOURCES).bits()), Kind::Unknown);
    }
}
