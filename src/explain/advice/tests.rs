//! Tests of the catalogue: stacks as they are seen, each with the words of its advice.
//!
//! *Runs on:* the tests.

use super::catalogue::CATALOGUE;
use super::*;
use crate::report::Blocking;

const CPU: Cause = Cause::Cpu;
const SLEEP: Cause = Cause::Blocked(Blocking::Sleep);
const LOCK: Cause = Cause::Blocked(Blocking::Lock);
const FILE: Cause = Cause::Blocked(Blocking::File);
const NETWORK: Cause = Cause::Blocked(Blocking::Network);
const PROCESS: Cause = Cause::Blocked(Blocking::Process);
const OTHER: Cause = Cause::Blocked(Blocking::Other);

fn frame(function: &str) -> Frame {
    let own = function.starts_with("app::") || function.starts_with("<app::");
    Frame::of(function, if own { Origin::Own } else { Origin::Std })
}

fn frame_in(file: &str, function: &str) -> Frame {
    Frame {
        file: Some(file.to_owned()),
        ..frame(function)
    }
}

/// The advice for the stack `innermost ← caller ← its caller`, called by the handler.
fn told(cause: Cause, call: &str, stack: &str) -> &'static str {
    let handler = "app::orders::handler::{{closure}}";
    let stack = stack.split(" ← ").chain([handler]);
    let frames: Vec<Frame> = stack.map(frame).collect();
    advise(&frames, cause, Some(call)).unwrap_or("nothing")
}

/// Asserts that the advice for each of these stacks contains all these words.
#[track_caller]
fn all_told(words: &[&str], cause: Cause, call: &str, stacks: &[&str]) {
    for stack in stacks {
        let told = told(cause, call, stack);
        for words in words {
            assert!(told.contains(words), "{words:?} for {stack}, not {told:?}");
        }
    }
}

#[test]
fn a_sleep_is_told_to_sleep_asynchronously() {
    let right = ["`tokio::time::sleep(…).await`"];
    all_told(
        &right,
        SLEEP,
        "clock_nanosleep",
        &[
            "__GI___clock_nanosleep ← std::sys::thread::unix::sleep ← std::thread::sleep",
            "clock_nanosleep@@GLIBC_2.17 ← std::sys::pal::unix::thread::Thread::sleep",
            "<std::sys::pal::unix::thread::Thread>::sleep",
            "__nanosleep ← std::thread::sleep_ms::h0123456789abcdef",
            "usleep",
            "?",
        ],
    );
    // The kernel does not show the cause.
    all_told(&right, Cause::Unknown, "", &["std::thread::sleep"]);
}

#[test]
fn file_work_is_told_to_go_elsewhere_whether_it_waits_or_computes() {
    let right = ["`tokio::fs`", "`spawn_blocking`"];
    all_told(
        &right,
        FILE,
        "read",
        &[
            "__libc_open64 ← std::sys::pal::unix::fs::File::open_c ← std::fs::read",
            "__GI_fsync ← <std::fs::File>::sync_all",
            "?",
        ],
    );
    all_told(&right, OTHER, "", &["fsync ← save_all"]);
    all_told(
        &right,
        CPU,
        "",
        &[
            "__GI___libc_write ← <std::fs::File as std::io::Write>::write",
            "<std::sys::fs::unix::File>::write",
            "std::fs::read::inner ← std::fs::read",
        ],
    );
}

#[test]
fn a_lock_of_a_file_is_told_to_be_tried() {
    all_told(
        &["file's lock", "`spawn_blocking`"],
        LOCK,
        "flock",
        &[
            "flock ← std::sys::fs::unix::File::lock ← std::fs::File::lock",
            "__flock ← <std::fs::File>::lock_shared",
            "flock ← fs4::lock_exclusive",
        ],
    );
}

#[test]
fn sockets_and_names_are_told_the_ones_of_tokio() {
    all_told(
        &["`tokio::net`"],
        NETWORK,
        "recvfrom",
        &[
            "__libc_recv ← <&std::net::tcp::TcpStream as std::io::Read>::read",
            "<std::sys::net::connection::socket::unix::Socket>::recv_with_flags",
            "std::os::unix::net::stream::UnixStream::connect",
            "?",
        ],
    );
    all_told(
        &["`tokio::net::lookup_host`"],
        OTHER,
        "poll",
        &[
            "__poll ← __GI_getaddrinfo ← std::net::each_addr",
            "<std::sys::net::connection::socket::LookupHost as core::convert::TryFrom<&str>>::try_from",
            "<(&str,u16) as std::net::socket_addr::ToSocketAddrs>::to_socket_addrs",
        ],
    );
    // Tokio's sockets are those of `std`. They never wait, but they take time on a CPU.
    let busy = "<&std::net::tcp::TcpStream as std::io::Write>::write ← mio::net::tcp";
    all_told(&["yield_now"], CPU, "", &[busy]);
}

#[test]
fn a_blocking_http_client_is_known_whatever_it_waits_in() {
    all_told(
        &["async HTTP client", "`spawn_blocking`"],
        NETWORK,
        "recvfrom",
        &[
            "__libc_recv ← <&std::net::tcp::TcpStream as std::io::Read>::read ← ureq::run::run",
            "<ureq::transport::TcpTransport as ureq::transport::Transport>::await_input",
            "__GI_getaddrinfo ← ureq::unversioned::resolver::DefaultResolver::resolve",
            "std::thread::park_timeout ← reqwest::blocking::wait::timeout",
            "std::thread::sleep ← ureq::pool::retry",
            "futures_lite::future::block_on ← isahc::client::HttpClient::send",
            "__poll ← curl_multi_poll ← curl_easy_perform",
            "minreq::connection::Connection::send",
            "<attohttpc::request::PreparedRequest<B>>::send",
        ],
    );
    // An async client in `block_on` is one already.
    let inside = "futures_executor::local_pool::block_on ← reqwest::async_impl::client::execute";
    all_told(&["`block_on`"], LOCK, "futex", &[inside]);
}

#[test]
fn a_blocking_database_client_is_known_whatever_it_does() {
    let right = ["database", "`spawn_blocking`"];
    all_told(
        &right,
        CPU,
        "",
        &[
            "sqlite3VdbeExec ← sqlite3_step ← rusqlite::statement::Statement::step",
            "__GI___libc_malloc ← sqlite3MemMalloc ← sqlite3VdbeExec",
            "_int_free ← <rusqlite::Statement as core::ops::drop::Drop>::drop",
        ],
    );
    all_told(
        &right,
        FILE,
        "fsync",
        &[
            "__GI_fsync ← full_fsync ← unixSync ← sqlite3OsSync ← sqlite3_step",
            "fsync ← <rusqlite::Connection>::execute::<[i32; 1]>",
            "rocksdb::DBImpl::Get(rocksdb::ReadOptions const&, rocksdb::Slice*) ← rocksdb_get",
        ],
    );
    all_told(
        &right,
        NETWORK,
        "poll",
        &[
            "tokio::runtime::runtime::Runtime::block_on ← postgres::client::Client::query",
            "__poll ← pqSocketPoll ← PQgetResult",
            "<diesel::pg::PgConnection as diesel::connection::LoadConnection>::load",
            "mysql::conn::Conn::query",
            "redis::connection::Connection::read ← redis::cmd::Cmd::query",
        ],
    );
    all_told(
        &right,
        LOCK,
        "futex",
        &["<sled::Tree>::insert::<&[u8], u8>"],
    );
    let busy_handler = "nanosleep ← unixSleep ← sqliteDefaultBusyCallback ← sqlite3_step";
    all_told(&right, SLEEP, "clock_nanosleep", &[busy_handler]);

    let not_blocking = [
        "redis::cmd::Cmd::query_async",
        "tokio_postgres::client::Client::query",
    ];
    all_told(&["yield_now"], CPU, "", &not_blocking);
}

#[test]
fn waiting_for_a_pool_is_not_waiting_for_a_condition() {
    let waits = [
        "parking_lot::condvar::Condvar::wait_until_internal ← r2d2::Pool<M>::get_timeout",
        "syscall ← <r2d2::Pool<r2d2_sqlite::SqliteConnectionManager>>::get",
    ];
    all_told(&["async pool", "`spawn_blocking`"], LOCK, "futex", &waits);
    let connects = "sqlite3_step ← rusqlite::Connection::execute_batch ← r2d2::Pool<M>::get";
    all_told(&["database"], CPU, "", &[connects]);
}

#[test]
fn password_hashes_come_before_the_hashes_they_are_made_of() {
    for stack in [
        "sha2::sha256::compress256 ← hmac::block_api::HmacCore<D> ← pbkdf2::pbkdf2_hmac",
        "<argon2::Argon2>::fill_blocks",
        "argon2id_hash_raw",
        "bcrypt::bcrypt::bcrypt",
        "salsa20::xor ← scrypt::romix::scrypt_ro_mix",
        "ring::pbkdf2::derive",
    ] {
        let told = told(CPU, "", stack);
        assert!(told.starts_with("Password"), "{stack}: {told}");
        assert!(told.contains("`spawn_blocking`"), "{stack}: {told}");
    }
}

#[test]
fn computing_is_told_apart_by_the_crate_that_does_it() {
    for (words, stacks) in [
        (
            "Compress",
            &[
                "flate2::zio::Writer<W,D>::write_with_status",
                "miniz_oxide::deflate::core::compress_normal",
                "<brotli::enc::encode::BrotliEncoderStateStruct<A>>::compress_stream",
                "ZSTD_compressBlock_doubleFast",
                "inflate_fast",
            ][..],
        ),
        (
            "images",
            &[
                "miniz_oxide::inflate::core::decompress ← png::decoder::zlib",
                "<image::imageops::sample::Lanczos3>::resize",
            ],
        ),
        (
            "regex",
            &[
                "<regex::regex::string::Regex>::new",
                "regex_automata::nfa::thompson::compiler::Compiler::c_cap",
            ],
        ),
        (
            "cryptography",
            &[
                "rsa::algorithms::rsa::rsa_decrypt",
                "ring::rsa::keypair::KeyPair::sign",
                "aws_lc_0_32_3_bn_mul_mont",
            ],
        ),
        (
            "Hash",
            &["sha2::sha256::x86::digest_blocks", "blake3_hash_many_avx2"],
        ),
        (
            "serialising",
            &[
                "<quick_xml::de::Deserializer<R> as serde::de::Deserializer>::deserialize_map",
                "<app::Order as prost::message::Message>::encode_raw",
                "app::_::<impl serde_core::ser::Serialize for app::Order>::serialize",
            ],
        ),
    ] {
        all_told(&[words, "`spawn_blocking`"], CPU, "", stacks);
    }
    let backtrace = "std::backtrace_rs::symbolize::gimli::resolve ← std::panicking::default_hook";
    all_told(&["RUST_BACKTRACE"], CPU, "", &[backtrace]);
    let waits = "std::sys::backtrace::lock ← std::panicking::default_hook";
    all_told(&["RUST_BACKTRACE"], LOCK, "futex", &[waits]);
    // A decoder that waits for its input does not compute.
    let waits = "<std::fs::File as std::io::Read>::read ← flate2::bufread::gz::read_header";
    all_told(&["`tokio::fs`"], FILE, "read", &[waits]);
    // The output of a child is a pipe.
    let child = "<std::sys::fs::unix::File>::read ← std::io::default_read_to_end";
    all_told(
        &["`tokio::process`", "`spawn_blocking`"],
        FILE,
        "read",
        &[child],
    );
}

#[test]
fn json_is_known_below_the_code_that_it_calls() {
    all_told(
        &["JSON", "`spawn_blocking`"],
        CPU,
        "",
        &[
            "<app::Order as serde_core::ser::Serialize>::serialize ← serde_json::ser::to_vec",
            "<&mut serde_json::de::Deserializer<R> as serde_core::de::Deserializer>::deserialize_map",
            "_int_free ← core::ptr::drop_in_place<app::Order> ← serde_json::de::from_str",
            "std::fs::read ← serde_json::de::from_reader",
            "<simd_json::Deserializer>::from_slice",
            "sonic_rs::serde::ser::to_string",
            // Of what has been inlined, a trait of the user's type is left.
            "<app::Order as serde::ser::Serialize>::serialize",
        ],
    );
    let waits = "<std::fs::File as std::io::Read>::read ← serde_json::de::from_reader";
    all_told(&["`tokio::fs`"], FILE, "read", &[waits]);
}

#[test]
fn waiting_for_a_lock_asks_for_less_time_in_it() {
    all_told(
        &["shorter critical section", "`tokio::sync`"],
        LOCK,
        "futex",
        &[
            "syscall ← std::sys::sync::mutex::futex::Mutex::lock_contended",
            "<std::sync::poison::mutex::Mutex<T>>::lock",
            "std::sys::sync::rwlock::futex::RwLock::read_contended",
            "std::thread::park ← std::sys::sync::rwlock::queue::RwLock::lock_contended",
            "parking_lot_core::parking_lot::park ← parking_lot::raw_mutex::RawMutex::lock_slow",
            "lock_api::rwlock::RwLock<R,T>::write",
            "dashmap::lock::RawRwLock::lock_exclusive_slow",
            "__lll_lock_wait ← ___pthread_mutex_lock",
        ],
    );
}

#[test]
fn a_wait_for_the_allocator_asks_for_another_or_for_more_cpu() {
    let stacks = [
        "__lll_lock_wait_private ← cfree",
        "__lll_lock_wait_private ← __GI___libc_malloc ← alloc::alloc::alloc",
        "__lll_lock_wait_private ← _int_free ← __rustc::__rust_dealloc",
    ];
    all_told(&["jemalloc"], LOCK, "futex", &stacks);
    all_told(
        &["more CPU", "allocator"],
        Cause::Contention,
        "futex",
        &stacks,
    );
}

#[test]
fn each_wait_for_another_thread_has_its_counterpart() {
    for (words, stacks) in [
        (
            "`tokio::sync::mpsc`",
            &[
                "<std::thread::thread::Thread>::park ← std::sync::mpmc::context::Context::wait_until",
                "std::sync::mpsc::Receiver<T>::recv",
                "std::thread::park_timeout ← crossbeam_channel::context::Context::wait_until",
                "std::thread::park ← flume::Receiver<T>::recv",
            ][..],
        ),
        (
            "`tokio::sync::Notify`",
            &[
                "<std::sys::sync::condvar::futex::Condvar>::wait_optional_timeout",
                "std::sync::poison::condvar::Condvar::wait ← std::sync::barrier::Barrier::wait",
                "parking_lot::raw_mutex::RawMutex::lock_slow ← parking_lot::condvar::Condvar::wait",
            ],
        ),
        (
            "`tokio::sync::oneshot`",
            &[
                "__pthread_clockjoin_ex ← std::thread::JoinHandle<T>::join",
                "std::thread::functions::park",
                "std::thread::scoped::scope",
            ],
        ),
        (
            "`rayon::spawn`",
            &["std::sync::condvar::Condvar::wait ← rayon_core::latch::LockLatch::wait_and_reset"],
        ),
        (
            "`tokio::sync::OnceCell`",
            &["std::sys::sync::once::futex::Once::call ← std::sync::once_lock::OnceLock<T>::get"],
        ),
        ("`tokio::sync`", &["syscall"]),
    ] {
        all_told(&[words], LOCK, "futex", stacks);
    }
}

#[test]
fn block_on_wins_over_what_it_waits_in() {
    let right = ["Await", "`block_on`"];
    all_told(
        &right,
        LOCK,
        "futex",
        &[
            "syscall ← std::thread::park ← futures_executor::local_pool::run_executor",
            "parking_lot::condvar::Condvar::wait ← tokio::runtime::park::CachedParkThread::block_on",
            "<tokio::runtime::handle::Handle>::block_on::<app::answer::{closure#0}>",
            "tokio::task::local::LocalSet::block_on",
            "std::sync::poison::condvar::Condvar::wait ← pollster::block_on",
            "std::sync::mutex::Mutex<T>::lock ← app::inner ← pollster::block_on",
        ],
    );
    let sleeps =
        "std::thread::sleep ← app::inner::{{closure}} ← futures_executor::local_pool::block_on";
    all_told(&right, SLEEP, "clock_nanosleep", &[sleeps]);
    // An event loop inside of a poll is somebody's `block_on`, even if no frame is known.
    let loops = [
        "epoll_wait ← mio::poll::Poll::poll ← tokio::runtime::runtime::Runtime::block_on",
        "?",
    ];
    all_told(&right, OTHER, "epoll_wait", &loops);
    // While the inner future computes, it is what holds the worker.
    let computes = "serde_json::ser::to_vec ← futures_executor::local_pool::block_on";
    all_told(&["JSON"], CPU, "", &[computes]);
}

#[test]
fn writing_a_log_is_not_writing_a_file() {
    all_told(
        &["non-blocking writer"],
        FILE,
        "write",
        &[
            "<std::fs::File as std::io::Write>::write ← tracing_subscriber::fmt::fmt_layer::Layer<S>",
            "<std::fs::File as std::io::Write>::write ← tracing_core::event::Event::dispatch",
            "<tracing_appender::rolling::RollingFileAppender as std::io::Write>::write",
            "write ← <std::io::stdio::StderrLock as std::io::Write>::write_all",
            "write ← <std::io::stdio::Stdout as std::io::Write>::write_fmt",
            "__libc_write ← std::io::stdio::print_to ← std::io::stdio::_print",
            "write ← env_logger::logger::Logger::print",
            "write ← <app::Journal as log::Log>::log",
            "write ← slog::Logger::log",
            "__GI_fsync ← log4rs::append::file::FileAppender",
        ],
    );
    // Somebody else has the writer, and is stuck in it.
    let locked = "std::sys::sync::mutex::futex::Mutex::lock_contended ← fern::log_impl::Dispatch";
    all_told(&["non-blocking writer"], LOCK, "futex", &[locked]);
    // The queue of the non-blocking writer is full.
    let full = "crossbeam_channel::channel::Sender<T>::send ← tracing_appender::non_blocking \
        ← tracing_subscriber::fmt::fmt_layer::Layer<S>";
    all_told(&["lossy"], LOCK, "futex", &[full]);
}

#[test]
fn standard_input_and_processes_are_told_the_ones_of_tokio() {
    let input = "__libc_read ← <std::io::stdio::StdinRaw as std::io::Read>::read_buf";
    all_told(&["`tokio::io::stdin`"], FILE, "read", &[input]);
    all_told(
        &["`tokio::process`"],
        PROCESS,
        "wait4",
        &[
            "__wait4 ← std::sys::process::unix::unix::Process::wait",
            "__poll ← <std::process::Command>::output",
            "waitpid",
            "?",
        ],
    );
    let forks = "std::process::Command::spawn ← tokio::process::Command::spawn";
    all_told(&["`spawn_blocking`"], PROCESS, "clone", &[forks]);
}

#[test]
fn a_drop_that_computes_is_told_to_happen_elsewhere() {
    all_told(
        &["drop it", "`spawn_blocking`"],
        CPU,
        "",
        &[
            "_int_free ← __GI___libc_free ← core::ptr::drop_in_place<app::Sessions>",
            "<alloc::boxed::Box<T> as core::ops::drop::Drop>::drop",
            "core::ptr::drop_in_place::<alloc::vec::Vec<serde_json::value::Value>>",
            "<app::Tree as core::ops::drop::Drop>::drop",
            "hashbrown::raw::RawTableInner::drop_elements",
        ],
    );
    let freed = ["cfree@GLIBC_2.2.5"];
    all_told(
        &["only drop it there", "Compute in `spawn_blocking`"],
        CPU,
        "",
        &freed,
    );
    let closes = "core::ptr::drop_in_place<std::fs::File>";
    all_told(&["`tokio::fs`"], FILE, "close", &[closes]);
}

#[test]
fn what_is_not_known_is_told_by_its_cause() {
    let sort = ["core::slice::sort::stable::drift::sort", "?"];
    let right = ["`spawn_blocking`", "rayon", "`yield_now().await`"];
    all_told(&right, CPU, "", &sort);
    all_told(&["async counterpart", "`spawn_blocking`"], OTHER, "", &sort);
    assert_eq!(advise(&[], Cause::Unknown, None), None);
}

#[test]
fn time_that_the_host_took_is_never_blamed_on_the_code() {
    let stack =
        "std::thread::sleep ← rusqlite::Connection::execute ← tokio::runtime::Handle::block_on";
    for (cause, words) in [
        (Cause::Contention, "more CPU"),
        (Cause::Throttled, "CPU limit"),
        (Cause::Suspended, "stood still"),
    ] {
        all_told(&[words], cause, "futex", &[stack, "?"]);
        let told = told(cause, "futex", stack);
        assert!(!told.contains('`') && !told.contains("database"), "{told}");
    }
}

#[test]
fn what_is_handed_over_is_not_what_is_called() {
    all_told(
        &["yield_now"],
        CPU,
        "",
        &[
            "core::iter::traits::iterator::Iterator::fold::<rusqlite::Row, serde_json::Value>",
            "<alloc::vec::Vec<image::Rgb> as core::iter::Extend<serde_json::Value>>::extend",
            "alloc::vec::Vec<rusqlite::Row>::push",
            "<fn(ureq::Agent) -> toml::Value as core::ops::FnOnce<(sha2::Sha256,)>>::call_once",
        ],
    );
}

#[test]
fn a_crate_of_the_users_own_may_be_called_as_another() {
    let own = Frame {
        origin: Origin::Own,
        ..frame_in("/app/image/src/lib.rs", "image::thumbnail::{{closure}}")
    };
    let another = Frame {
        origin: Origin::Dependency,
        ..own.clone()
    };
    let told = |frame| advise(&[frame], CPU, None).unwrap();
    assert!(told(own).contains("yield_now"));
    assert!(told(another).contains("images"));
}

#[test]
fn bare_names_are_known_by_the_place_of_their_source() {
    const REGISTRY: &str = "/root/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
    const LIBRARY: &str = "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library";
    for (directory, file, function, cause, words) in [
        (
            REGISTRY,
            "r2d2-0.8.10/src/lib.rs",
            "get<M>",
            LOCK,
            "async pool",
        ),
        (
            REGISTRY,
            "serde_json-1.0.154/src/ser.rs",
            "{closure#0}<u8>",
            CPU,
            "JSON",
        ),
        (REGISTRY, "md-5-0.10.6/src/lib.rs", "digest", CPU, "Hash"),
        (
            REGISTRY,
            "futures-executor-0.3.34/src/local_pool.rs",
            "block_on<F>",
            LOCK,
            "block_on",
        ),
        (
            "vendor",
            "rusqlite/src/statement.rs",
            "step",
            CPU,
            "database",
        ),
        (
            LIBRARY,
            "std/src/sync/poison/mutex.rs",
            "lock<u64>",
            LOCK,
            "critical section",
        ),
        (
            LIBRARY,
            "std/src/thread/join_handle.rs",
            "join<()>",
            LOCK,
            "oneshot",
        ),
        (
            LIBRARY,
            "std/src/fs.rs",
            "read<&std::path::PathBuf>",
            CPU,
            "`tokio::fs`",
        ),
        (
            LIBRARY,
            "core/src/ptr/mod.rs",
            "drop_in_place<app::Big>",
            CPU,
            "drop it",
        ),
        (".", "malloc/malloc.c", "__libc_free", CPU, "drop it"),
        // Not the function of C.
        (REGISTRY, "slab-0.4.12/src/lib.rs", "free", CPU, "yield_now"),
    ] {
        let file = format!("{directory}/{file}");
        let told = advise(&[frame_in(&file, function)], cause, None).unwrap();
        assert!(told.contains(words), "{function} in {file}: {told}");
    }
}

#[test]
fn the_detectors_own_frames_and_those_without_a_name_say_nothing() {
    let detector = Frame {
        origin: Origin::Detector,
        ..frame("std::thread::sleep")
    };
    let nameless = Frame {
        function: None,
        ..frame("")
    };
    assert_eq!(advise(&[detector, nameless], Cause::Unknown, None), None);
}

#[test]
fn names_of_all_kinds_are_taken_apart() {
    for (name, right) in [
        ("std::thread::sleep", "std::thread::sleep"),
        ("std[1a2b3c]::thread::sleep", "std::thread::sleep"),
        ("a::B<C>::d::{{closure}}", "a::B::d::{{closure}}"),
        ("a::B::c(d::E const&)", "a::B::c"),
        ("<a::B<fn(u8) -> c::D>>::e", "a::B::e"),
        ("<a::B as c::D>::e", "a::B::e c::D::e"),
        ("<&mut a::B<C> as d::E<f::G>>::h::<i::J>", "a::B::h d::E::h"),
        ("<&mut <a::B>::c as d::E>::f", "a::B::c::f d::E::f"),
        ("a::<impl b::C for d::E<F>>::g", "a::g d::E::g b::C::g"),
    ] {
        let paths = paths_in(name, false);
        let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
        assert_eq!(paths.join(" "), right, "{name}");
    }
    let of_own = paths_in("<a::B<c::D> as e::F>::g", true);
    assert_eq!(of_own, [["e", "F", "g"]]);
    for odd in [
        "",
        "::",
        "<",
        ">>::<<",
        "<a as ",
        "operator<",
        "é::<ü>::ö",
        "a::<impl ",
    ] {
        let frames = [
            frame(odd),
            frame_in("/src/.rs", odd),
            frame_in("src/é.rs", odd),
        ];
        assert_eq!(advise(&frames, Cause::Unknown, None), None, "{odd}");
    }
}

#[test]
fn no_rule_is_hidden_behind_another() {
    for rule in CATALOGUE {
        let cause = match rule.when {
            When::Only(cause) => cause,
            When::Code | When::Computing => CPU,
            When::Waiting | When::Asleep => OTHER,
        };
        for pattern in rule.patterns() {
            let function = pattern.replace("::*::", "::").replace('*', "");
            let call = rule.calls.first().copied();
            let told = advise(&[frame(&function)], cause, call);
            assert_eq!(told, Some(rule.advice), "{pattern}");
        }
    }
}

#[test]
fn each_advice_is_one_short_sentence() {
    for Rule { advice, .. } in CATALOGUE {
        assert!(advice.chars().count() <= 140, "too long: {advice}");
        assert!(advice.ends_with('.') && !advice.contains(". "), "{advice}");
        assert!(advice.starts_with(char::is_uppercase), "{advice}");
        assert_eq!(advice.matches('`').count() % 2, 0, "{advice}");
    }
}
