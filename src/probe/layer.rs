//! A tracing layer that marks the enter and the exit of each span.
//!
//! *Runs on:* worker threads, at every enter and exit of a span.
//! *Must not:* do more than a few stores to one cache line for an enter or an exit, or anything for
//! an event.
//!
//! The layer stores span ids; [`sources`] looks their names up.

use super::fields::Fields;
use super::sources::{self, Source};
use crate::slot::{self, Kind, Mark};
use std::any::TypeId;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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
        has_spans: AtomicBool::new(false),
        fields: None,
    }
}

/// Marks polls with the spans they are in; made by [`layer`].
pub struct StallLayer<S> {
    /// Votes on callsites as any filtered layer does. It would look each span up at enter and exit,
    /// so these two calls bypass it.
    filtered: Filtered<Silent, SpansUpTo, S>,
    /// Whether the layer was given a place among the filters of its subscriber. One that replaces
    /// another by `reload` has none, and no vote.
    has_vote: bool,
    /// The mark of an enter: the number of the registry with the span. The span's id goes beside
    /// it.
    mark: AtomicU32,
    /// The registry of the spans is known.
    is_registered: AtomicBool,
    /// A span has come since the registry is known: a new span asks for nothing more.
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
        self.has_vote && self.filtered.filter().takes(metadata)
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
        let source = Source::of::<S>(dispatch, self.fields.clone());
        if let Some(number) = source.and_then(|source| sources::register(&source)) {
            let mark = Mark::of(Kind::Span(number));
            self.mark.store(mark.to_raw(), Ordering::Relaxed);
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
    // unsafe. It asks before the layer has its place, and keeps the answer.
    #[allow(unsafe_code)]
    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        if id == TypeId::of::<Self>() {
            return Some(std::ptr::from_ref(self).cast());
        }
        if !takes_filters::<S>() {
            return None;
        }
        // SAFETY: the callee's contract is the caller's: the pointer is used as the type asked for,
        // and no longer than `self`, of which `filtered` is a part.
        unsafe { self.filtered.downcast_raw(id) }
    }
}

/// Whether a span has come to a layer of this process. Relaxed: it publishes nothing else.
static HAS_SPANS: AtomicBool = AtomicBool::new(false);

pub(crate) fn has_seen_spans() -> bool {
    HAS_SPANS.load(Ordering::Relaxed)
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

impl SpansUpTo {
    fn takes(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && *metadata.level() <= self.0
    }
}

impl<S> Filter<S> for SpansUpTo {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.takes(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.takes(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
}
