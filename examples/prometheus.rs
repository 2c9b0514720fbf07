//! A small service whose handlers block in different ways, under a light load of its own. Open the
//! address that it prints, and see its stalls come and go.
//!
//! `cargo run --release --example prometheus --features serve`

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The port of the page, if it is free.
const PORT: u16 = 9464;

/// The handlers. All but `index` block their worker; each says what it should do instead.
mod handlers {
    use super::*;

    static CACHE: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(Mutex::default);

    pub(super) async fn index() -> usize {
        tokio::time::sleep(Duration::from_millis(5)).await;
        CACHE.try_lock().map_or(0, |cache| cache.len())
    }

    /// A call to another service with a blocking client. `tokio::time::sleep` would not block.
    pub(super) async fn legacy_api() -> usize {
        std::thread::sleep(Duration::from_millis(180));
        180
    }

    /// Hashes a password on the worker. It belongs to `spawn_blocking`.
    pub(super) async fn login() -> usize {
        hash_password("correct horse battery staple")
    }

    fn hash_password(password: &str) -> usize {
        let started = Instant::now();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        while started.elapsed() < Duration::from_millis(250) {
            for byte in password.bytes().cycle().take(100_000) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        std::hint::black_box(hash) as usize
    }

    /// Waits for a lock that a slow thread holds. A lock of tokio's would not block.
    pub(super) async fn profile() -> usize {
        let (held, is_held) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut cache = CACHE.lock().unwrap();
            held.send(()).ok();
            std::thread::sleep(Duration::from_millis(400));
            cache.resize(1024, 0);
        });
        is_held.recv().ok();
        CACHE.lock().unwrap().len()
    }

    /// Writes a file and waits for the disk. It belongs to `spawn_blocking`.
    pub(super) async fn upload() -> usize {
        let path = std::path::PathBuf::from(format!("target/upload-{}", std::process::id()));
        save(&path).unwrap_or(0)
    }

    fn save(path: &std::path::Path) -> std::io::Result<usize> {
        let mut file = std::fs::File::create(path)?;
        for _ in 0..100 {
            file.write_all(&[7; 4096])?;
            file.sync_all()?;
        }
        std::fs::remove_file(path)?;
        Ok(100)
    }
}

/// Routes, and the seconds between two requests of the load.
const ROUTES: [(&str, u64); 5] = [
    ("/", 1),
    ("/legacy", 4),
    ("/login", 7),
    ("/profile", 9),
    ("/upload", 11),
];

#[tracing::instrument(skip_all, fields(path))]
async fn request(path: &str) -> usize {
    match path {
        "/legacy" => handlers::legacy_api().await,
        "/login" => handlers::login().await,
        "/profile" => handlers::profile().await,
        "/upload" => handlers::upload().await,
        _ => handlers::index().await,
    }
}

async fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = [0; 1024];
    let length = stream.read(&mut head).await?;
    let head = String::from_utf8_lossy(&head[..length]);
    let path = head.split(' ').nth(1).unwrap_or("/");
    let body = format!("{}\n", request(path).await);
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await
}

async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream));
    }
}

/// Sends requests to one route for ever.
async fn load(address: SocketAddr, path: &str, pause: Duration) -> std::io::Result<()> {
    loop {
        tokio::time::sleep(pause).await;
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut Vec::new()).await?;
    }
}

/// Starts the watch, with the page at the usual port or at another one.
fn watch() -> Result<tokio_stall::Guard, tokio_stall::StartError> {
    let start = |port| {
        let builder = tokio_stall::Builder::new().log(false);
        builder.serve((Ipv4Addr::LOCALHOST, port)).start()
    };
    start(PORT).or_else(|_| start(0))
}

#[tokio::main(worker_threads = 4)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::registry()
        .with(tokio_stall::layer())
        .init();
    let watch = watch()?;
    let page = watch.served_at().ok_or("the page has an address")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let service = listener.local_addr()?;
    println!("the service is at http://{service}; it blocks now and then");
    println!("open http://{page} to see where; Ctrl-C ends it");

    tokio::spawn(serve(listener));
    for (path, seconds) in ROUTES {
        tokio::spawn(load(service, path, Duration::from_secs(seconds)));
    }
    tokio::signal::ctrl_c().await?;
    Ok(())
}
