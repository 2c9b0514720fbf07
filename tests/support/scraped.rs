//! A scrape of metrics, as Prometheus makes it, taken apart.

use super::FOREVER;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// One answer to a scrape.
#[derive(Clone, Debug, Default)]
pub struct Scraped {
    /// By name and labels, as they are written.
    pub samples: BTreeMap<String, f64>,
    /// By metric: counter, gauge, histogram …
    pub types: BTreeMap<String, String>,
}

impl Scraped {
    pub fn parse(text: &str) -> Scraped {
        let mut scraped = Scraped::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                scraped.types.insert(name.to_owned(), kind.to_owned());
            } else if !line.is_empty() && !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a series and a value");
                let value = value.parse().expect("a number");
                assert!(
                    scraped.samples.insert(series.to_owned(), value).is_none(),
                    "{series} stands twice"
                );
            }
        }
        scraped
    }

    /// The metrics that have a sample.
    pub fn names(&self) -> BTreeSet<String> {
        let name = |series: &str| {
            let name = series.split('{').next().unwrap_or(series).to_owned();
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|base| self.types.contains_key(*base));
            of_histogram.map(str::to_owned).unwrap_or(name)
        };
        self.samples.keys().map(|series| name(series)).collect()
    }

    /// The number of workers that a stall holds now.
    pub fn stalled(&self) -> usize {
        let workers = self.with("tokio_stall_worker_stalled_seconds", &[]);
        workers.filter(|(_, age)| *age > 0.0).count()
    }

    /// The sum of all samples of this name that have all of these labels, written as `key="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.with(name, labels).map(|(_, value)| value).sum()
    }

    /// Those samples.
    pub fn with<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [&'a str],
    ) -> impl Iterator<Item = (&'a str, f64)> + 'a {
        self.samples.iter().filter_map(move |(series, value)| {
            let rest = series.strip_prefix(name)?;
            let fits = (rest.is_empty() || rest.starts_with('{'))
                && labels.iter().all(|label| rest.contains(label));
            fits.then_some((series.as_str(), *value))
        })
    }

    /// The series that must never go back: counters, and the parts of histograms.
    pub fn growing(&self) -> impl Iterator<Item = (&str, f64)> {
        self.samples.iter().filter_map(|(series, value)| {
            let name = series.split('{').next()?;
            let grows = ["_total", "_bucket", "_sum", "_count"];
            let grows = grows.iter().any(|suffix| name.ends_with(suffix));
            grows.then_some((series.as_str(), *value))
        })
    }
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    pub took: Duration,
}

/// Asks over a connection of its own. `None` if there was no whole answer.
pub fn get(address: SocketAddr, path: &str) -> Option<Answer> {
    let asked = Instant::now();
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(FOREVER)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_owned(),
        body: body.to_owned(),
        took: asked.elapsed(),
    })
}

/// Waits for a scrape that fits. While a server starts, there may be no answer.
#[track_caller]
pub fn wait_for(
    mut scrape: impl FnMut() -> Option<Scraped>,
    fits: impl Fn(&Scraped) -> bool,
) -> Scraped {
    let deadline = Instant::now() + FOREVER;
    loop {
        match scrape() {
            Some(scraped) if fits(&scraped) => return scraped,
            scraped => assert!(Instant::now() < deadline, "waited in vain: {scraped:#?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An address that is free now, and likely still free in a moment.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Scrapes a server of ours.
pub fn scrape(address: SocketAddr) -> Scraped {
    let answer = get(address, "/metrics").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.head);
    Scraped::parse(&answer.body)
}
