//! The subscribers with our layer, and how the names of their spans are looked up.
//!
//! *Runs on:* the thread that installs or drops a subscriber; `stall-reporter`, to look names up
//! while the span is still entered; `stall-sinks`, to put an event into a span.
//! *Must not:* take a lock that is held while a span is entered or a field is formatted.

use super::fields::Fields;
use crate::slot;
use parking_lot::Mutex;
use std::sync::Arc;
use tracing::dispatcher::WeakDispatch;
use tracing::span::Id;
use tracing::{Dispatch, Metadata, Subscriber};
use tracing_subscriber::registry::LookupSpan;

/// One element of a span path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpanName {
    pub(crate) id: u64,
    pub(crate) name: &'static str,
    /// The fields as `{key=value …}`, if they are kept.
    pub(crate) fields: Option<String>,
}

/// A span of a subscriber with this layer. It may be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanRef {
    pub(crate) source: u8,
    pub(crate) id: u64,
}

/// A span's id, and its metadata from the source.
type SpanOnPath = (u64, &'static Metadata<'static>);

/// The names of a subscriber with this layer: how to look them up.
pub(super) struct Source {
    dispatch: WeakDispatch,
    /// The address of the registry of spans, as long as the subscriber lives.
    registry: usize,
    look_up: fn(&Dispatch, &Id) -> Option<Vec<SpanOnPath>>,
    is_open_here: fn(&Dispatch, &Id) -> bool,
    fields: Option<Arc<Fields>>,
}

/// The sources by their numbers.
type Sources = [Option<Arc<Source>>; slot::SOURCES as usize];

/// No reference to a subscriber is made or let go of under the lock: it may be the last one, and
/// the end of a subscriber is the user's code (D253).
static SOURCES: Mutex<Sources> = Mutex::new([const { None }; slot::SOURCES as usize]);

impl Source {
    /// The source of a subscriber whose registry of spans is an `S`.
    pub(super) fn of<S>(dispatch: &Dispatch, fields: Option<Arc<Fields>>) -> Option<Arc<Source>>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let registry = dispatch.downcast_ref::<S>()?;
        Some(Arc::new(Source {
            dispatch: dispatch.downgrade(),
            registry: std::ptr::from_ref(registry).addr(),
            look_up: look_up::<S>,
            is_open_here: is_open_here::<S>,
            fields,
        }))
    }

    /// Whether the subscriber is alive. Not to be asked under the lock.
    fn is_alive(&self) -> bool {
        self.dispatch.upgrade().is_some()
    }
}

/// Finds a number for a subscriber. A layer that `reload` puts into the place of another one gets
/// the same number; those of subscribers that are gone are given again. If all are in use the layer
/// still marks polls, and its spans have no names.
pub(super) fn register(source: &Arc<Source>) -> Option<u8> {
    loop {
        let known = SOURCES.lock().clone();
        let is_alive = |known: &Option<Arc<Source>>| known.as_ref().is_some_and(|it| it.is_alive());
        let alive: Vec<bool> = known.iter().map(is_alive).collect();
        let is_same = |known: &Arc<Source>| known.registry == source.registry;
        let mut places = 0..known.len();
        let same = places.find(|at| alive[*at] && known[*at].as_ref().is_some_and(is_same));
        let place = same.or_else(|| alive.iter().position(|is_alive| !is_alive))?;
        if take_place(place, known[place].as_ref(), source) {
            return u8::try_from(place).ok();
        }
    }
}

/// Puts a source in the place of another one, unless a third one is there by now.
fn take_place(place: usize, of: Option<&Arc<Source>>, source: &Arc<Source>) -> bool {
    let mut sources = SOURCES.lock();
    let is_same = sources[place].as_ref().map(Arc::as_ptr) == of.map(Arc::as_ptr);
    if is_same {
        // The caller has another reference to the old one, which does not end here.
        sources[place] = Some(source.clone());
    }
    is_same
}

/// Whether any subscriber with this layer is alive.
pub(crate) fn is_layer_installed() -> bool {
    let sources = SOURCES.lock().clone();
    sources.iter().flatten().any(|source| source.is_alive())
}

/// The path from the outermost parent to this span, or `None` if the span has been closed.
///
/// Only for the reporter: it takes the short lock of the table of sources, and the registry's own
/// reference to each span, but no lock that is held while a span is entered or a field is
/// formatted.
pub(crate) fn resolve_span(span: SpanRef) -> Option<Vec<SpanName>> {
    let (source, dispatch, id) = find(span)?;
    // If the span is closed during the search, this thread holds its last reference, and the
    // parents must be released in their own registry.
    let look_up = || (source.look_up)(&dispatch, &id);
    let path = tracing::dispatcher::with_default(&dispatch, look_up)?;
    let named = path.into_iter().map(|(id, metadata)| SpanName {
        id,
        name: metadata.name(),
        fields: source.fields.as_ref().and_then(|fields| fields.get(id)),
    });
    Some(named.collect())
}

/// The span as a parent for an event of the calling thread. `None` if the span is closed, or if the
/// event goes to another subscriber.
///
/// Only for `stall-sinks`, as [`resolve_span`] is for the reporter.
pub(crate) fn parent_for_events(span: SpanRef) -> Option<Id> {
    let (source, dispatch, id) = find(span)?;
    (source.is_open_here)(&dispatch, &id).then_some(id)
}

/// Calls `f` with the span and its subscriber, if the span is open.
///
/// Only for `stall-sinks`: `f` may take the locks of the span.
pub(crate) fn with_open_span<T>(
    span: SpanRef,
    f: impl FnOnce(&Id, &Dispatch) -> Option<T>,
) -> Option<T> {
    let (source, dispatch, id) = find(span)?;
    // If the span is closed meanwhile, this thread may hold its last reference, and the parents
    // must be released in their own registry.
    tracing::dispatcher::with_default(&dispatch, || {
        (source.look_up)(&dispatch, &id)?;
        f(&id, &dispatch)
    })
}

fn find(span: SpanRef) -> Option<(Arc<Source>, Dispatch, Id)> {
    let source = SOURCES.lock().get(usize::from(span.source))?.clone()?;
    let dispatch = source.dispatch.upgrade()?;
    let id = (span.id != 0).then(|| Id::from_u64(span.id))?;
    Some((source, dispatch, id))
}

fn is_open_here<S>(dispatch: &Dispatch, id: &Id) -> bool
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let Some(registry) = dispatch.downcast_ref::<S>() else {
        return false;
    };
    tracing::dispatcher::get_default(|here| {
        let is_here = here.downcast_ref::<S>();
        is_here.is_some_and(|here| std::ptr::eq(here, registry)) && registry.span(id).is_some()
    })
}

fn look_up<S>(dispatch: &Dispatch, id: &Id) -> Option<Vec<SpanOnPath>>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let registry = dispatch.downcast_ref::<S>()?;
    let span = registry.span(id)?;
    Some(
        span.scope()
            .from_root()
            .map(|span| (span.id().into_u64(), span.metadata()))
            .collect(),
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::layer;
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;
    use tracing_subscriber::layer::{Layer, SubscriberExt as _};
    use tracing_subscriber::{Registry, reload};

    /// A layer of the program whose end makes a call of ours.
    struct CallsAtItsEnd;

    impl<S: Subscriber> Layer<S> for CallsAtItsEnd {}

    impl Drop for CallsAtItsEnd {
        fn drop(&mut self) {
            is_layer_installed();
        }
    }

    /// Lets some nanoseconds pass, another number each time.
    fn passes(round: u32) {
        for _ in 0..round.wrapping_mul(2_654_435_761) >> 25 {
            std::hint::spin_loop();
        }
    }

    /// Ends many subscribers, each while the other thread looks for them.
    fn ends_subscribers(rounds: u32, round_of_looks: &AtomicU32) {
        for round in 1..=rounds {
            let subscriber = tracing_subscriber::registry();
            let subscriber = subscriber.with(layer()).with(CallsAtItsEnd);
            let dispatch = Dispatch::new(subscriber);
            // Relaxed, here and below: the number publishes nothing else.
            round_of_looks.store(2 * round, Ordering::Relaxed);
            passes(round);
            drop(dispatch);
            while round_of_looks.load(Ordering::Relaxed) != 2 * round + 1 {
                std::thread::yield_now();
            }
        }
    }

    fn looks_for_subscribers(rounds: u32, round_of_looks: &AtomicU32) {
        for round in 1..=rounds {
            while round_of_looks.load(Ordering::Relaxed) != 2 * round {
                std::thread::yield_now();
            }
            (0..4).for_each(|_| {
                is_layer_installed();
            });
            round_of_looks.store(2 * round + 1, Ordering::Relaxed);
        }
    }

    /// A span that is entered keeps its number, and so its name.
    #[test]
    fn a_layer_that_is_replaced_leaves_its_number_to_the_next_one() {
        let numbered = || {
            let (layer, handle) = reload::Layer::new(layer::<Registry>());
            let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
            (dispatch, handle)
        };
        let number_of = |dispatch: &Dispatch| {
            let registry = dispatch.downcast_ref::<Registry>().expect("a registry");
            let address = std::ptr::from_ref(registry).addr();
            let sources = SOURCES.lock().clone();
            let is_its = |it: &Option<Arc<Source>>| {
                it.as_ref()
                    .is_some_and(|it| it.registry == address && it.is_alive())
            };
            let numbers = sources.iter().enumerate().filter(|(_, it)| is_its(it));
            numbers.map(|(number, _)| number).collect::<Vec<_>>()
        };
        let (first, handle) = numbered();
        let of_first = tracing::dispatcher::with_default(&first, || {
            drop(tracing::info_span!("registers"));
            number_of(&first)
        });
        assert_eq!(of_first.len(), 1);
        handle.reload(layer()).expect("the subscriber lives");
        let (second, _handle) = numbered();
        tracing::dispatcher::with_default(&second, || drop(tracing::info_span!("registers")));
        tracing::dispatcher::with_default(&first, || drop(tracing::info_span!("again")));
        assert_eq!(number_of(&first), of_first);
        assert_ne!(number_of(&second), of_first);
    }

    #[test]
    fn a_subscriber_does_not_end_under_the_lock() {
        const ROUNDS: u32 = 1_000;
        let (send, done) = mpsc::channel();
        std::thread::spawn(move || {
            let round_of_looks = AtomicU32::new(0);
            std::thread::scope(|scope| {
                scope.spawn(|| looks_for_subscribers(ROUNDS, &round_of_looks));
                ends_subscribers(ROUNDS, &round_of_looks);
            });
            send.send(()).unwrap();
        });
        let in_time = done.recv_timeout(Duration::from_secs(300));
        in_time.expect("no thread waits for a lock that it holds");
    }
}
