//! A real Prometheus watches a service of ours: through a stall of all workers, with the alerts that we ship.
//!
//! Needs `prometheus` and `promtool`, in the folder that `PROMETHEUS_BIN` names or on the path. Without them
//! nothing is checked, and the test says so.

mod scraped;

use scraped::get;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio_stall::FutureExt as _;

const WORKERS: usize = 4;
/// What is waited for comes within seconds; the bound is only there for what never comes.
const FOREVER: Duration = Duration::from_secs(90);

/// A program of the Prometheus package, if it is there.
fn program(name: &str) -> Option<PathBuf> {
    let given = std::env::var_os("PROMETHEUS_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    given
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Stopped when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(program: &Path, folder: &Path, target: SocketAddr) -> Prometheus {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("monitoring/prometheus/rules/tokio-stall.rules.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 900ms, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n- job_name: service\n  static_configs: [{{targets: ['{target}']}}]\n",
            rules.display()
        );
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        // Free now, and likely still free in a moment.
        let address = TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let prometheus = Prometheus { child, address };
        let ready = || get(address, "/-/ready").is_some_and(|answer| answer.status == 200);
        prometheus.wait("ready", ready);
        prometheus
    }

    fn wait(&self, what: &str, fits: impl Fn() -> bool) {
        let deadline = Instant::now() + FOREVER;
        while !fits() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The values of an instant query, each with its labels.
    fn query(&self, query: &str) -> Vec<(serde_json::Value, f64)> {
        let escaped: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let path = format!("/api/v1/query?query={escaped}");
        let answer = get(self.address, &path).expect("Prometheus answers");
        // It answers in chunks; a short answer is one.
        let json = answer.body.find('{').zip(answer.body.rfind('}'));
        let json = json
            .map(|(first, last)| &answer.body[first..=last])
            .unwrap_or_default();
        let json: serde_json::Value =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
        assert_eq!(json["status"], "success", "{query}: {json}");
        let results = json["data"]["result"].as_array().unwrap().iter();
        results
            .map(|result| {
                let value = result["value"][1].as_str().unwrap().parse().unwrap();
                (result["metric"].clone(), value)
            })
            .collect()
    }

    fn value(&self, query: &str) -> Option<f64> {
        self.query(query).first().map(|(_, value)| *value)
    }

    fn firing(&self) -> Vec<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}");
        let names = alerts
            .iter()
            .map(|(labels, _)| labels["alertname"].as_str().unwrap().to_owned());
        names.collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn prometheus_sees_a_stall_before_it_ends_and_never_loses_its_target() {
    let (Some(prometheus), Some(promtool)) = (program("prometheus"), program("promtool")) else {
        // To the real standard error: what a passing test prints is swallowed.
        writeln!(
            std::io::stderr().lock(),
            "NOT CHECKED: neither PROMETHEUS_BIN nor the path has prometheus and promtool; `bash .ci/prometheus` fetches them"
        )
        .unwrap();
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .unwrap();
    let watch = tokio_stall::Builder::new()
        .runtime("api", runtime.handle().clone())
        .serve(([127, 0, 0, 1], 0))
        .start()
        .unwrap();
    let served_at = watch.served_at().unwrap();
    for _ in 0..WORKERS {
        runtime.spawn(
            async {
                loop {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            .watched("well behaved"),
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(&prometheus, folder.path(), served_at);

    // A healthy while.
    prometheus.wait("the first scrapes", || {
        prometheus.value("count_over_time(tokio_stall_build_info[1m])") >= Some(8.0)
    });
    assert_eq!(
        prometheus.firing(),
        Vec::<String>::new(),
        "nothing is wrong"
    );
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let scrape = get(served_at, "/metrics").unwrap().body;
    check
        .stdin
        .take()
        .unwrap()
        .write_all(scrape.as_bytes())
        .unwrap();
    let checked = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned()
        + &String::from_utf8_lossy(&checked.stdout);
    assert!(
        checked.status.success() && said.trim().is_empty(),
        "promtool: {said}"
    );

    // All workers blocked, until the sender is dropped.
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    for _ in 0..WORKERS {
        let held = held.clone();
        runtime.spawn(async move { held.lock().unwrap().recv().ok() }.watched("planted"));
    }
    prometheus.wait("the age of the stall going on", || {
        prometheus.value("count(tokio_stall_worker_stalled_seconds > 0)") == Some(WORKERS as f64)
    });
    prometheus.wait("both alerts about stalled workers", || {
        let firing = prometheus.firing();
        ["TokioWorkerStalledNow", "TokioAllWorkersStalled"]
            .iter()
            .all(|alert| firing.iter().any(|name| name == alert))
    });
    // Still so: the stall goes on until this line. No scrape has failed on the way.
    assert!(prometheus.value("max(tokio_stall_worker_stalled_seconds)") > Some(5.0));
    assert_eq!(prometheus.value("min_over_time(up[5m])"), Some(1.0));
    assert_eq!(
        prometheus.value("sum(tokio_stall_stall_duration_seconds_count)"),
        Some(0.0),
        "not over"
    );
    drop(release);

    // A machine with more to do than CPUs may bring another stall about.
    prometheus.wait("the end", || {
        prometheus.value("sum(tokio_stall_stall_duration_seconds_count)") >= Some(WORKERS as f64)
    });
    prometheus.wait("the alerts' end", || prometheus.firing().is_empty());
    // Counters that begin at zero have an increase, extrapolated to the whole window as ever.
    assert!(
        prometheus.value("max(increase(tokio_stall_stalls_total[5m]))") >= Some(WORKERS as f64)
    );
    assert_eq!(
        prometheus.value("sum(resets(tokio_stall_stalls_total[5m]))"),
        Some(0.0)
    );
    assert_eq!(prometheus.value("min_over_time(up[5m])"), Some(1.0));
    drop(watch);
}
