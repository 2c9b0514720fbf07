//! Events have the fields of `docs/log-format.md`: names, types and presence.
//!
//! A program of its own: its subscriber is that of the process.

mod support;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::stage::{Setup, Stage};
use support::wait_until;
use tokio_stall::{FutureExt as _, TraceContext};
use tracing::{Event, Instrument as _, Subscriber, info_span};
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;

/// A row of a table of the document.
struct Documented {
    is: &'static str,
    always: bool,
}

/// The fields in the section with this title.
fn documented(title: &str) -> BTreeMap<&'static str, Documented> {
    let text = include_str!("../docs/log-format.md");
    let (_, section) = text
        .split_once(&format!("\n## {title}\n"))
        .expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let fields = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let always = cells[2] == "always";
        (
            cells[0].trim_end_matches('`'),
            Documented {
                is: cells[1],
                always,
            },
        )
    });
    fields.collect()
}

/// The lines of the log, and the fields that each kind of event declares, by its first own field.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<u8>>>,
    declared: Arc<Mutex<BTreeSet<Vec<&'static str>>>>,
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "tokio_stall" {
            let fields = event.metadata().fields().iter();
            let fields = fields
                .map(|field| field.name())
                .filter(|name| *name != "message");
            self.declared.lock().unwrap().insert(fields.collect());
        }
    }
}

impl Log {
    fn events(&self) -> Vec<Value> {
        let text = String::from_utf8(self.lines.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }

    /// The events with this field, once one of them has ended.
    fn ended_with(&self, field: &str) -> Vec<Value> {
        let with_field = || -> Vec<Value> {
            let events = self.events().into_iter();
            events
                .filter(|event| !event["fields"][field].is_null())
                .collect()
        };
        wait_until("the last event", || {
            let events = with_field();
            events
                .iter()
                .any(|event| event["fields"]["phase"] == "ended")
        });
        with_field()
    }

    /// Compares the fields that events with `own` declare with the document.
    #[track_caller]
    fn assert_declared(&self, own: &str, title: &str) {
        let declared = self.declared.lock().unwrap();
        let declared: Vec<_> = declared.iter().filter(|all| all.contains(&own)).collect();
        assert!(!declared.is_empty(), "no event has {own}");
        let documented: BTreeSet<&str> = documented(title).into_keys().collect();
        for fields in declared {
            let fields: BTreeSet<&str> = fields.iter().copied().collect();
            assert_eq!(fields, documented, "{title}");
        }
    }
}

/// Compares names, types and presence in one event with the document.
#[track_caller]
fn assert_documented(event: &Value, title: &str) {
    let documented = documented(title);
    let fields = event["fields"].as_object().unwrap();
    for (name, value) in fields.iter().filter(|(name, _)| *name != "message") {
        let field = documented.get(name.as_str());
        let field = field.unwrap_or_else(|| panic!("{name} is not in the document"));
        let is_right = match field.is {
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            other => panic!("{other}"),
        };
        assert!(
            is_right,
            "{name} is {value}, and not of the type {}",
            field.is
        );
    }
    for (name, _) in documented.iter().filter(|(_, field)| field.always) {
        assert!(fields.contains_key(*name), "no {name} in {event}");
    }
}

fn setup() -> Setup {
    let setup = Stage::multi_thread(2).named("api");
    let setup = setup.runtime(|runtime| runtime.max_blocking_threads(1));
    setup.settings(|builder| {
        let builder = builder.startup_grace(Duration::ZERO);
        let builder = builder.pool_threshold(Duration::from_millis(100));
        builder.traces(|_, _| Some(TraceContext::new("a trace", "a span")))
    })
}

#[test]
fn events_have_the_fields_of_the_document() {
    let log = Log::default();
    let writer = log.clone();
    let json = tracing_subscriber::fmt::layer().json();
    tracing_subscriber::registry()
        .with(tokio_stall::layer())
        .with(json.with_writer(move || writer.clone()))
        .with(log.clone())
        .init();
    let stage = setup().start();

    let blocks = async { std::thread::sleep(Duration::from_millis(300)) };
    stage.run(blocks.instrument(info_span!("request")).watched("job"));
    let stalls = log.ended_with("certainty");
    for stall in &stalls {
        assert_documented(stall, "A stall");
    }
    let ended = stalls.last().unwrap();
    let fields = &ended["fields"];
    let text = fields["message"].as_str().unwrap();
    assert!(text.contains("of \"api\" was blocked for"), "{text}");
    assert_eq!(
        (&ended["target"], &ended["level"]),
        (&"tokio_stall".into(), &"WARN".into())
    );
    assert_eq!(fields["trace_id"], "a trace");
    assert!(
        fields["in_span"]
            .as_str()
            .unwrap()
            .contains("job > request")
    );
    // Once a stall.
    let advised = stalls
        .iter()
        .filter(|stall| stall["fields"]["message"].to_string().contains("await"));
    assert!(advised.count() <= 1, "{stalls:#?}");
    // Began and ended; and between them its site, if that was found late.
    let is_found_late = stalls[0]["fields"]["site"].is_null();
    let most = 2 + usize::from(is_found_late);
    assert!(stalls.len() <= most, "{stalls:#?}");
    log.assert_declared("certainty", "A stall");

    let (release, held) = support::Held::new();
    let holds = stage.runtime.spawn_blocking(move || held.wait());
    wait_until("a wait", || {
        let mut events = log.events().into_iter();
        events.any(|event| !event["fields"]["waited_seconds"].is_null())
    });
    drop(release);
    stage.runtime.block_on(holds).unwrap();
    for wait in log.ended_with("waited_seconds") {
        assert_documented(&wait, "A wait for the blocking pool");
    }
    log.assert_declared("waited_seconds", "A wait for the blocking pool");

    let events = log.events();
    let start = events
        .iter()
        .find(|event| !event["fields"]["threshold_seconds"].is_null());
    assert_documented(start.unwrap(), "The start");
    log.assert_declared("threshold_seconds", "The start");
}

/// The documented example is what it says.
#[test]
fn the_example_of_the_document_is_a_documented_event() {
    let text = include_str!("../docs/log-format.md");
    let (_, example) = text.split_once("```json\n").expect("an example");
    let (example, _) = example.split_once("\n```").unwrap();
    let example = example.replace('\n', " ");
    let event: Value = serde_json::from_str(&example).unwrap();
    assert_documented(&event, "A stall");
}
