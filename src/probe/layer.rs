//! A tracing layer that marks the enter and the exit of each span.
//!
//! *Runs on:* worker threads, at every enter and exit of a span; `stall-reporter`, to look names
//! up; `stall-sinks`, to put an event into a span.
//! *Must not:* do more than a few stores to one cache line for an enter or an exit, or anything for
//! an event.
//!
//! The layer stores span ids. The reporter looks their names up while the span is still entered.

use crate::slot::{self, Kind, Mark};
use parking_lot::Mutex;
use std::any::TypeId;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tracing::dispatcher::WeakDispatch;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Metadata, Subscriber};
use tracing_subscriber::filter::Filtered;
use tracing_subscriber::layer::{Context, Filter, Layer};
use tracing_subscriber::registry::LookupSpan;

/// The layer that gives stalls the names of spans.
///
/// Add it to the subscriber of the program:
///
/// ```
/// use tracing_subscriber::prelude::*;
///
/// tracing_subscriber::registry()
///     .with(tokio_stall::layer())
///     .with(tracing_subscriber::fmt::layer())
///     .init();
/// ```
///
/// It asks for spans up to `INFO` ([`StallLayer::with_max_level`]) and for no events. All other
/// callsites are left to the other layers; more verbose spans that one of them has enabled give
/// their names, too. A filter for the whole subscriber (an `EnvFilter` added as a layer) applies to
/// it like to any layer: spans that the filter turns off have no names here.
///
/// The subscriber of `tracing_subscriber::fmt().finish()` takes no filter of a layer. On it the
/// layer asks for nothing, and names the spans that the subscriber enables by itself. So does one
/// that has taken the place of another by `reload`.
///
/// # Cost
///
/// Entering a span: one load and four stores more than the registry's own work; leaving it: one
/// load and two stores. Some twenty instructions each, and twice as many for a span inside another
/// one. Events: nothing.
pub fn layer<S>() -> StallLayer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span> + 'static,
{
    StallLayer {
        filtered: Silent.with_filter(SpansUpTo(LevelFilter::INFO)),
        has_vote: false,
        mark: AtomicU32::new(Mark::UNKNOWN.to_raw()),
        is_registered: AtomicBool::new(false),
        source: Mutex::new(None),
        has_spans: AtomicBool::new(false),
        fields: None,
    }
}

/// Marks polls with the spans they are in; made by [`layer`].
pub struct StallLayer<S> {
    /// Votes on callsites as any filtered layer does. It would look each span up at enter and exit,
    /// so these two calls bypass it.
    filtered: Filtered<Silent, SpansUpTo, S>,
    /// Whether the subscriber takes filters of layers, and has been built with this one. Otherwise
    /// the layer has no vote: one that replaces another by `reload` has no place among the filters.
    has_vote: bool,
    /// The mark of an enter: the number of the registry with the span. The span's id goes beside
    /// it.
    mark: AtomicU32,
    /// The registry of the spans is known.
    is_registered: AtomicBool,
    /// The registry, and its place among all.
    source: Mutex<Option<(u8, Arc<Source>)>>,
    /// A span has come since then.
    has_spans: AtomicBool,
    fields: Option<Arc<Fields>>,
}

impl<S> StallLayer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span> + 'static,
{
    /// Sets the most verbose level of spans to ask for. By default, this is `INFO`.
    ///
    /// More verbose spans that another layer has enabled give their names all the same. Spans of
    /// `tower_http`'s `TraceLayer` are of the level `DEBUG`, unless it is told otherwise.
    #[must_use]
    pub fn with_max_level(mut self, level: LevelFilter) -> StallLayer<S> {
        self.filtered = Silent.with_filter(SpansUpTo(level));
        self
    }

    /// Keeps the fields of spans, so that reports show `get_user{id=7}` instead of `get_user`.
    ///
    /// # Cost
    ///
    /// Each new span formats its fields into a string and stores it under a short lock: some
    /// hundred nanoseconds. Entering and leaving cost the same as without.
    #[must_use]
    pub fn with_fields(mut self) -> StallLayer<S> {
        self.fields = Some(Arc::default());
        self
    }

    /// Notes that spans come, and registers with the subscriber of the program. `Option`, `Vec` and
    /// `reload` do not pass on that there is one, so the layer asks at its first span.
    #[cold]
    fn take_first_span(&self) {
        HAS_SPANS.store(true, Ordering::Relaxed);
        if self.is_registered.load(Ordering::Relaxed) {
            self.has_spans.store(true, Ordering::Relaxed);
            return;
        }
        tracing::dispatcher::get_default(|dispatch| {
            let has_registry = dispatch.downcast_ref::<S>().is_some();
            if has_registry && !self.is_registered.swap(true, Ordering::Relaxed) {
                self.on_register_dispatch(dispatch);
            }
        });
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        self.has_vote && metadata.is_span() && *metadata.level() <= self.filtered.filter().0
    }
}

impl<S> Drop for StallLayer<S> {
    fn drop(&mut self) {
        if let Some((place, source)) = self.source.get_mut().take() {
            unregister(place, &source);
        }
    }
}

impl<S> fmt::Debug for StallLayer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StallLayer")
            .field("max_level", &self.filtered.filter().0)
            .field("fields", &self.fields.is_some())
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for StallLayer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span> + 'static,
{
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        self.is_registered.store(true, Ordering::Relaxed);
        let source = Arc::new(Source {
            dispatch: dispatch.downgrade(),
            look_up: look_up::<S>,
            is_open_here: is_open_here::<S>,
            fields: self.fields.clone(),
        });
        if let Some(number) = register(&source) {
            let mark = Mark::of(Kind::Span(number));
            self.mark.store(mark.to_raw(), Ordering::Relaxed);
            *self.source.lock() = Some((number, source));
        }
    }

    fn on_layer(&mut self, subscriber: &mut S) {
        self.has_vote = takes_filters::<S>();
        if self.has_vote {
            self.filtered.on_layer(subscriber);
        }
    }

    // The layer abstains on callsites that it does not want. `always` from a filtered layer means
    // "ask the others", and without its vote they decide alone.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) {
            self.filtered.register_callsite(metadata)
        } else {
            Interest::always()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, cx: Context<'_, S>) -> bool {
        !self.wants(metadata) || self.filtered.enabled(metadata, cx)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.filtered.max_level_hint().filter(|_| self.has_vote)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        if !self.has_spans.load(Ordering::Relaxed) {
            self.take_first_span();
        }
        if self.wants(attributes.metadata()) {
            self.filtered.on_new_span(attributes, id, cx);
        }
        if let Some(fields) = &self.fields {
            fields.add(id, |text| attributes.record(text));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        if let Some(fields) = &self.fields {
            fields.add(id, |text| values.record(text));
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        if let Some(fields) = &self.fields {
            fields.remove(&id);
        }
    }

    #[inline]
    fn on_enter(&self, id: &Id, _: Context<'_, S>) {
        let mark = Mark::from_raw(self.mark.load(Ordering::Relaxed));
        slot::begin(mark, id.into_u64());
    }

    #[inline]
    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        if let Some(slot) = slot::end_quickly() {
            // A closed span has no name, so the name is taken before.
            slot.end_slowly(&move || cx.metadata(id).map(|metadata| metadata.name()));
        }
    }

    // Tracing asks through this method whether the layer filters for itself, and declares it
    // unsafe.
    #[allow(unsafe_code)]
    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        if id == TypeId::of::<Self>() {
            return Some(std::ptr::from_ref(self).cast());
        }
        if !self.has_vote {
            return None;
        }
        // SAFETY: the callee's contract is the caller's: the pointer is used as the type asked for,
        // and no longer than `self`, of which `filtered` is a part.
        unsafe { self.filtered.downcast_raw(id) }
    }
}

/// Whether the subscriber takes filters of layers. That of `tracing_subscriber::fmt().finish()`
/// does not, and panics if it is given one. Nothing but its name shows that.
fn takes_filters<S>() -> bool {
    !std::any::type_name::<S>().contains("tracing_subscriber::fmt::Subscriber")
}

/// A layer that does nothing, inside [`Filtered`], of which only the vote is used.
#[derive(Debug)]
struct Silent;

impl<S: Subscriber> Layer<S> for Silent {}

#[derive(Debug)]
struct SpansUpTo(LevelFilter);

impl<S> Filter<S> for SpansUpTo {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        metadata.is_span() && *metadata.level() <= self.0
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_span() && *metadata.level() <= self.0 {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
}

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
struct Source {
    dispatch: WeakDispatch,
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
    /// Whether the subscriber is alive. Not to be asked under the lock.
    fn is_alive(&self) -> bool {
        self.dispatch.upgrade().is_some()
    }
}

/// Finds a number for a subscriber; the numbers of subscribers that are gone are given again. If
/// all are in use the layer still marks polls, and its spans have no names.
fn register(source: &Arc<Source>) -> Option<u8> {
    loop {
        let known = SOURCES.lock().clone();
        let is_free = |known: &Option<Arc<Source>>| known.as_ref().is_none_or(|it| !it.is_alive());
        let free = known.iter().position(is_free)?;
        if take_place(free, known[free].as_ref(), source) {
            return u8::try_from(free).ok();
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

/// Frees the place of a layer that is gone, as one that `reload` has replaced.
fn unregister(place: u8, source: &Arc<Source>) {
    let mut sources = SOURCES.lock();
    let known = &mut sources[usize::from(place)];
    if known
        .as_ref()
        .is_some_and(|known| Arc::ptr_eq(known, source))
    {
        // The caller has another reference.
        *known = None;
    }
}

/// Whether a span has come to a layer of this process. Relaxed: it publishes nothing else.
static HAS_SPANS: AtomicBool = AtomicBool::new(false);

/// Whether a span has come to a layer of this process.
pub(crate) fn has_seen_spans() -> bool {
    HAS_SPANS.load(Ordering::Relaxed)
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

const SHARDS: usize = 16;

/// The fields of live spans, by id. The text is made before a lock is taken, so that the reporter
/// never waits for a value that is slow to format.
#[derive(Debug, Default)]
struct Fields([Mutex<HashMap<u64, String>>; SHARDS]);

impl Fields {
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, String>> {
        &self.0[id as usize % SHARDS]
    }

    fn add(&self, id: &Id, record: impl FnOnce(&mut FieldText)) {
        let mut text = FieldText(String::new());
        record(&mut text);
        if !text.0.is_empty() {
            let id = id.into_u64();
            let mut shard = self.shard(id).lock();
            let known = shard.entry(id).or_default();
            if !known.is_empty() {
                known.push(' ');
            }
            known.push_str(&text.0);
        }
    }

    fn get(&self, id: u64) -> Option<String> {
        self.shard(id).lock().get(&id).cloned()
    }

    fn remove(&self, id: &Id) {
        let id = id.into_u64();
        self.shard(id).lock().remove(&id);
    }
}

struct FieldText(String);

impl Visit for FieldText {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing to a string fails only if the value's own formatting fails; then the field is cut
        // there.
        write!(self.0, "{space}{}={value:?}", field.name()).ok();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;
    use tracing_subscriber::layer::SubscriberExt as _;

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
