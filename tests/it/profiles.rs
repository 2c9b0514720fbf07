//! `/debug/pprof/stall` and `/stalls/flamegraph` name the function and line of a real stall, and
//! their values are those of `Profile::sites`.

use crate::support::stage::Stage;
use crate::support::{FOREVER, assert_site};
use prost::Message;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// The parts of pprof's schema that the test reads, by their numbers there.
#[derive(Clone, PartialEq, Message)]
struct Decoded {
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    locations: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    functions: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    texts: Vec<String>,
    #[prost(int64, tag = "9")]
    begun_at: i64,
    #[prost(int64, tag = "10")]
    duration: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    locations: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    values: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    lines: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "4")]
    file: i64,
}

impl Decoded {
    fn text(&self, number: i64) -> &str {
        &self.texts[usize::try_from(number).unwrap()]
    }

    fn sum(&self, value: usize) -> i64 {
        self.samples.iter().map(|sample| sample.values[value]).sum()
    }

    /// The functions, files and lines of a sample, innermost first.
    fn places(&self, sample: &Sample) -> Vec<(&str, &str, i64)> {
        let of_id = |id: &u64| self.locations.iter().find(|location| location.id == *id);
        let locations = sample.locations.iter().map(|id| of_id(id).unwrap());
        let lines = locations.flat_map(|location| &location.lines);
        lines
            .map(|line| {
                let mut functions = self.functions.iter();
                let function = functions.find(|function| function.id == line.function);
                let function = function.unwrap();
                (
                    self.text(function.name),
                    self.text(function.file),
                    line.line,
                )
            })
            .collect()
    }
}

/// The line of the wait below it.
const LINE: u32 = line!() + 5;

#[inline(never)]
fn waits_for_the_profile(until_told: &Receiver<()>) {
    // The stall is here.
    until_told.recv().ok();
}

/// A watch whose runtime has had one stall, and its server's answer to a path.
fn stalled(name: &str) -> (Stage, impl Fn(&str) -> (String, Vec<u8>) + use<>) {
    let stage = Stage::multi_thread(2)
        .named(name)
        .settings(|builder| builder.serve(([127, 0, 0, 1], 0)))
        .start();
    let stall = stage.block_until_reported("waits", |until_told| {
        waits_for_the_profile(&until_told);
    });
    let function = "it::profiles::waits_for_the_profile";
    assert_site(&stall.told, "tests/it/profiles.rs", LINE, function);
    let address = stage.watch.served_at().unwrap();
    let ask = move |path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(FOREVER)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        (head, answer[end + 4..].to_vec())
    };
    (stage, ask)
}

#[test]
fn pprof_names_the_function_and_agrees_with_the_sites() {
    let (stage, ask) = stalled("profiled");
    let (head, file) = ask("/debug/pprof/stall");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut bytes = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(&*file);
    decoder.read_to_end(&mut bytes).unwrap();
    let profile = Decoded::decode(&*bytes).unwrap();
    let sites = stage.watch.profile().sites();
    let count: u64 = sites.iter().map(|site| site.count).sum();
    let lost: Duration = sites.iter().map(|site| site.total).sum();
    assert!(count >= 1);
    assert_eq!(u64::try_from(profile.sum(0)), Ok(count), "{sites:#?}");
    assert_eq!(
        u128::try_from(profile.sum(1)),
        Ok(lost.as_nanos()),
        "{sites:#?}"
    );
    assert!(profile.begun_at > 0 && profile.duration > 0);
    let is_it = |(name, file, line): &(&str, &str, i64)| {
        let here = file.ends_with("tests/it/profiles.rs") && *line == i64::from(LINE);
        here && *name == "it::profiles::waits_for_the_profile"
    };
    let mut samples = profile.samples.iter();
    let sample = samples.find(|sample| profile.places(sample).iter().any(is_it));
    let sample = sample.unwrap_or_else(|| panic!("{profile:#?}"));
    let labels = sample.labels.iter();
    let labels: Vec<_> = labels
        .map(|label| (profile.text(label.key), profile.text(label.text)))
        .collect();
    assert!(labels.contains(&("runtime", "profiled")), "{labels:?}");
    let cause = labels.iter().find(|(key, _)| *key == "cause");
    let cause = cause.unwrap().1;
    assert!(sites.iter().any(|site| site.cause.as_str() == cause));
    read_with_go(&file);
}

/// Go's own reader names the function, where Go is installed.
fn read_with_go(file: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stall.pb.gz");
    std::fs::write(&path, file).unwrap();
    let tool = ["tool", "pprof", "-top", "-lines"];
    let Ok(output) = Command::new("go").args(tool).arg(&path).output() else {
        println!("NOT CHECKED: no `go` to read the profile with");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{output:?}");
    assert!(
        text.contains("it::profiles::waits_for_the_profile"),
        "{output:?}"
    );
    assert!(
        text.contains(&format!("tests/it/profiles.rs:{LINE}")),
        "{text}"
    );
}

#[test]
fn the_flame_graph_names_the_function_and_runs_no_script_of_a_name() {
    let (_stage, ask) = stalled("<script>alert(1)</script>");
    for path in ["/stalls/flamegraph", "/stalls/flamegraph?x=1&by=samples"] {
        let (head, svg) = ask(path);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let head = head.to_lowercase();
        assert!(head.contains("content-type: image/svg+xml"), "{head}");
        let policy = head
            .lines()
            .find(|line| line.starts_with("content-security-policy:"));
        let policy = policy.unwrap_or_else(|| panic!("{head}"));
        assert!(policy.contains("default-src 'none'"), "{policy}");
        let script = policy
            .split(';')
            .find(|part| part.contains("script-src"))
            .unwrap();
        assert!(!script.contains("'unsafe-inline'"), "{policy}");
        let svg = String::from_utf8(svg).unwrap();
        assert!(svg.contains("it::profiles::waits_for_the_profile"), "{svg}");
        assert!(svg.contains("&lt;script&gt;alert(1)"), "{svg}");
        assert_eq!(svg.matches("<script").count(), 1, "the picture's own");
        let mut reader = quick_xml::Reader::from_str(&svg);
        while reader.read_event().unwrap() != quick_xml::events::Event::Eof {}
    }
    assert!(
        ask("/stalls/flamegraph?by=colour")
            .0
            .starts_with("HTTP/1.1 400")
    );
}
