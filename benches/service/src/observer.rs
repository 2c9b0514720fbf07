//! `tokio-stall attach`, which looks at this process while it serves.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// A running observer.
pub(crate) struct Observer {
    child: Child,
    begun: Instant,
}

/// Stops of a thread: how many a second, and the microseconds of each.
pub(crate) struct Stops {
    pub(crate) per_second: f64,
    pub(crate) micros: f64,
}

impl Observer {
    /// Starts the program beside this one.
    ///
    /// # Panics
    ///
    /// If it is not there: `cargo build --release -p cargo-stall` makes it.
    pub(crate) fn start() -> Observer {
        let this = std::env::current_exe().expect("this program has a path");
        let child = Command::new(this.with_file_name("tokio-stall"))
            .args(["attach", &std::process::id().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo build --release -p cargo-stall");
        let begun = Instant::now();
        Observer { child, begun }
    }

    /// Ends it, and reads its last words.
    ///
    /// # Panics
    ///
    /// If it has seen no worker: then it was not at work.
    pub(crate) fn end(mut self) -> Stops {
        let time = self.begun.elapsed().as_secs_f64();
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status();
        assert!(sent.expect("a command").success());
        let mut text = String::new();
        let mut said = self.child.stdout.take().expect("it is a pipe");
        said.read_to_string(&mut text).expect("it is text");
        assert!(self.child.wait().expect("it is a child").success());
        assert!(text.contains("2 workers watched"), "{text}");
        let (count, micros) = stops_in(&text).unwrap_or_default();
        Stops {
            per_second: count / time,
            micros,
        }
    }
}

/// The figures of `310 stops of a thread, 41.2 µs each with …`.
fn stops_in(text: &str) -> Option<(f64, f64)> {
    let line = text
        .lines()
        .find(|line| line.contains(" stops of a thread"))?;
    let mut words = line.split(' ');
    let count = words.next()?.parse().ok()?;
    let mut each = words.skip_while(|word| !word.ends_with(','));
    each.next();
    let (figure, unit) = (each.next()?.parse::<f64>().ok()?, each.next()?);
    let micros = match unit {
        "ns" => figure / 1e3,
        "µs" => figure,
        "ms" => figure * 1e3,
        _ => figure * 1e6,
    };
    Some((count, micros))
}
