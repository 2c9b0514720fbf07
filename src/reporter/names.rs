//! The names of a poll: its marks, put into words.
//!
//! *Runs on:* `stall-reporter`, while the poll goes on. It may end at any time.

use crate::detect::HeldBy;
use crate::engine::{StallNews, StallThread};
use crate::probe::{SpanName, SpanRef, resolve_span};
use crate::report::Missing;
use crate::slot::names::{self, Name};
use crate::slot::{Kind, Marks, PollKey};

/// The marks of a poll, in words.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) span: Option<String>,
    /// The innermost span of the subscriber.
    pub(super) innermost: Option<SpanRef>,
    pub(super) task: Option<u64>,
    pub(super) spawned_at: Option<String>,
    pub(super) missing: Vec<Missing>,
}

/// Puts a poll's marks into words, as far as they are still there.
pub(super) fn look_up(news: &StallNews) -> Names {
    let mut names = Names::default();
    if let Some(Name::Text(left_behind)) = names::name(news.live.stall.name) {
        names.span = Some(left_behind.to_owned());
    }
    let HeldBy::Mark(poll) = news.live.stall.held_by else {
        names.missing.push(Missing::Unmarked);
        return names;
    };
    let thread = news.thread.as_ref();
    if let Some(marks) = thread.and_then(|thread| marks_of(thread, poll)) {
        names.read(&marks);
    }
    if names.span.is_none() && names.task.is_none() && names.missing.is_empty() {
        names.missing.push(Missing::MovedOn);
    }
    names
}

/// The marks of the poll as they are now, or as the watchdog saw them.
fn marks_of(thread: &StallThread, poll: PollKey) -> Option<Marks> {
    let is_same = thread.slot.tenancy() == thread.tenancy;
    let now = is_same.then(|| thread.slot.line.marks(poll.epoch));
    now.flatten().or_else(|| thread.marks.clone())
}

impl Names {
    fn read(&mut self, marks: &Marks) {
        let mut path: Vec<SpanName> = Vec::new();
        for entry in &marks.entries {
            self.read_entry(entry.kind, entry.id, &mut path);
        }
        self.missing.dedup();
        if marks.hidden > 0 {
            self.missing.push(Missing::TooDeep);
        }
        if self.task.is_some() {
            self.spawned_at = match names::name(marks.place) {
                Some(Name::Place(place)) => Some(format!("{}:{}", place.file(), place.line())),
                _ => None,
            };
        }
        if !path.is_empty() {
            self.span = Some(written(&path));
        }
    }

    fn read_entry(&mut self, kind: Kind, id: u64, path: &mut Vec<SpanName>) {
        match kind {
            Kind::Name => path.extend(watched_name(id)),
            Kind::Task => self.task = Some(id),
            Kind::Span(source) => {
                let span = SpanRef { source, id };
                match resolve_span(span) {
                    Some(names) => {
                        self.innermost = Some(span);
                        join(path, names);
                    }
                    None => self.missing.push(Missing::MovedOn),
                }
            }
            Kind::Unknown => self.missing.push(Missing::MovedOn),
        }
    }
}

/// Appends the path of a span, which holds all its parents. If an outer span is one of them, only
/// the part after it is appended.
fn join(path: &mut Vec<SpanName>, span: Vec<SpanName>) {
    let shared = span.iter().rposition(|parent| {
        path.iter()
            .any(|known| known.id == parent.id && known.id != 0)
    });
    let new = shared.map_or(0, |shared| shared + 1);
    path.extend(span.into_iter().skip(new));
}

/// A name given to `watched`. It has no id of its own, so the id is 0.
fn watched_name(number: u64) -> Option<SpanName> {
    match names::name(u32::try_from(number).ok()?)? {
        Name::Text(name) => Some(SpanName {
            id: 0,
            name,
            fields: None,
        }),
        Name::Place(_) => None,
    }
}

fn written(path: &[SpanName]) -> String {
    let mut text = String::new();
    for (index, span) in path.iter().enumerate() {
        if index > 0 {
            text.push_str(" > ");
        }
        text.push_str(span.name);
        if let Some(fields) = &span.fields {
            text.push('{');
            text.push_str(fields);
            text.push('}');
        }
    }
    text
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn span(id: u64, name: &'static str) -> SpanName {
        SpanName {
            id,
            name,
            fields: None,
        }
    }

    #[test]
    fn a_path_does_not_repeat_parents_that_are_entered_too() {
        let mut path = Vec::new();
        join(&mut path, vec![span(1, "request")]);
        join(&mut path, vec![span(1, "request"), span(2, "get_user")]);
        join(
            &mut path,
            vec![span(1, "request"), span(2, "get_user"), span(3, "query")],
        );
        assert_eq!(written(&path), "request > get_user > query");
    }

    #[test]
    fn names_and_spans_of_other_trees_stand_in_a_row() {
        let mut path = vec![span(0, "reindex")];
        join(&mut path, vec![span(7, "batch"), span(8, "write")]);
        path.push(span(0, "flush"));
        path.last_mut().unwrap().fields = Some("rows=3".to_owned());
        assert_eq!(written(&path), "reindex > batch > write > flush{rows=3}");
    }
}
