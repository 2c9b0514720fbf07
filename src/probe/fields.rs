//! The fields of live spans as texts, for a layer that keeps them.
//!
//! *Runs on:* worker threads, when a span begins, records a value or is closed; `stall-reporter`.
//! *Must not:* format a value under a lock: the reporter takes it too.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use tracing::field::{Field, Visit};
use tracing::span::Id;

const SHARDS: usize = 16;

/// The fields of live spans, by id.
#[derive(Debug, Default)]
pub(super) struct Fields([Mutex<HashMap<u64, String>>; SHARDS]);

impl Fields {
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, String>> {
        &self.0[id as usize % SHARDS]
    }

    /// Adds the fields that `record` writes. The text is made before the lock is taken.
    pub(super) fn add(&self, id: &Id, record: impl FnOnce(&mut FieldText)) {
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

    pub(super) fn get(&self, id: u64) -> Option<String> {
        self.shard(id).lock().get(&id).cloned()
    }

    pub(super) fn remove(&self, id: &Id) {
        let id = id.into_u64();
        self.shard(id).lock().remove(&id);
    }
}

/// Fields as `key=value key=value`.
pub(super) struct FieldText(String);

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
