//! The catalogue: code that holds a worker, with the advice for each.
//!
//! *Runs on:* `stall-reporter`.
//!
//! It is a table. The first rule that matches decides, so the order matters.

use super::{Rule, When};
use crate::report::{Blocking, Cause};

const SLEEP: &str =
    "Sleep with `tokio::time::sleep(…).await`, which leaves the worker to other tasks.";
const FILE: &str = "Use `tokio::fs`, or do all of the file work in one `spawn_blocking`.";
const NETWORK: &str =
    "Use the sockets of `tokio::net`, or do the whole exchange in `spawn_blocking`.";
const PROCESS: &str = "Start the process with `tokio::process`, and await its end and its output.";
/// The allocator's functions: those of Rust, and those of C that they call.
const ALLOCATOR: &str = "alloc::alloc::* __rustc::__rust_alloc* __rustc::__rust_dealloc \
     __rustc::__rust_realloc malloc calloc realloc free cfree memalign posix_memalign \
     aligned_alloc int_malloc int_free int_realloc libc_malloc libc_calloc libc_realloc libc_free";
const BLOCK_ON: &str = "Await the future instead of calling `block_on` inside async code.";

/// The rules, most specific first. Crates come before the standard library, in which they wait, and
/// the standard library before rules on the cause alone.
pub(super) const CATALOGUE: &[Rule] = &[
    // The host is the cause, and not the code.
    Rule {
        when: When::Only(Cause::Contention),
        functions: ALLOCATOR,
        // Without this call, it is this thread that waits for a CPU.
        calls: &["futex"],
        advice: "Give the process more CPU: the thread that holds the allocator's lock waits for one.",
    },
    Rule {
        when: When::Only(Cause::Contention),
        functions: "",
        calls: &["futex"],
        advice: "Give the process more CPU, or take other work off this machine: the code was ready \
                 to run, or the thread that holds a lock of tokio was.",
    },
    Rule::anything(
        When::Only(Cause::Contention),
        "Give the process more CPU, or take other work off this machine: the code was ready to run.",
    ),
    Rule::anything(
        When::Only(Cause::Throttled),
        "Look at the CPU limit of the container or control group: the code waited because it was used up.",
    ),
    Rule::anything(
        When::Only(Cause::Suspended),
        "Leave the code as it is: the whole process stood still, as if stopped, suspended or migrated.",
    ),
    // A panic or an error with a backtrace looks up the symbols of all its frames. Other panics
    // wait for that.
    Rule::calling(
        "backtrace std::backtrace std::backtrace_rs std::sys::backtrace::lock",
        When::Code,
        "Leave `RUST_BACKTRACE` unset, or make no backtraces here: looking up their symbols is slow.",
    ),
    // Logging comes before the rest, since all other code logs, too. A queue that may not overflow
    // can be full.
    Rule::calling(
        "tracing_appender::non_blocking",
        When::Waiting,
        "Let the log drop lines while its queue is full (`lossy(true)`), or give the queue more room.",
    ),
    Rule::calling(
        "log::__private_api log::Log tracing_appender::rolling tracing_core::event \
         tracing_core::subscriber::Subscriber::event tracing_journald tracing_subscriber::fmt \
         env_logger fern flexi_logger log4rs simplelog slog slog_term std::io::stdio::_eprint \
         std::io::stdio::_print std::io::stdio::Stderr* std::io::stdio::Stdout* \
         std::io::stdio::print* std::sys::stdio::*::Stderr std::sys::stdio::*::Stdout",
        When::Waiting,
        "Log and print through a non-blocking writer, such as `tracing_appender::non_blocking`.",
    ),
    // A pool comes before its database: it is also on the stack while it tests a connection.
    Rule::calling(
        "r2d2",
        When::Waiting,
        "Use an async pool such as `bb8` or `deadpool`, or get the connection in `spawn_blocking`.",
    ),
    Rule::calling(
        "diesel duckdb fjall heed libsqlite3_sys librocksdb_sys lmdb mongodb::sync mysql \
         odbc_api oracle postgres pq_sys redb redis::client::Client::get_connection* \
         redis::cmd::Cmd::exec redis::cmd::Cmd::query redis::commands::Commands \
         redis::connection rocksdb rusqlite sled sqlite PQ* mdb_* mysql_* rocksdb_* sqlite3*",
        When::Code,
        "Use an async database client, or do all of the database work in `spawn_blocking`.",
    ),
    Rule::calling(
        "attohttpc curl http_req isahc minreq reqwest::blocking ureq ureq_proto curl_*",
        When::Waiting,
        "Use an async HTTP client such as `reqwest` or `hyper`, or send the request in `spawn_blocking`.",
    ),
    Rule::calling(
        "rayon_core",
        When::Waiting,
        "Start the work with `rayon::spawn`, and await a `tokio::sync::oneshot` for its result.",
    ),
    Rule::calling(
        "async_io::driver::block_on async_std::task::*::block_on futures_executor \
         futures_lite::future::block_on pollster smol::block_on tokio::future::block_on \
         tokio::runtime::*::block_on tokio::task::*::block_on tokio_test::block_on",
        When::Waiting,
        BLOCK_ON,
    ),
    Rule::calling(
        "std::io::stdio::Stdin* std::sys::stdio::*::Stdin",
        When::Waiting,
        "Read standard input through `tokio::io::stdin`, or on a thread of its own.",
    ),
    // Tokio itself forks here, which takes long in a large process.
    Rule::calling(
        "tokio::process",
        When::Code,
        "Start the process in `spawn_blocking`: to start one is itself a call that blocks.",
    ),
    Rule::calling(
        "std::process std::sys::process duct posix_spawn* waitpid",
        When::Code,
        PROCESS,
    ),
    // The ways to wait for another thread. Channels park, and condition variables lock again.
    Rule::calling(
        "std::sync::mpmc std::sync::mpsc async_channel crossbeam_channel flume kanal",
        When::Waiting,
        "Use a channel that can be awaited, such as `tokio::sync::mpsc`.",
    ),
    Rule::calling(
        "std::sync::*::barrier std::sync::*::condvar std::sys::sync::condvar \
         parking_lot::condvar crossbeam_utils::sync::wait_group pthread_cond_*",
        When::Waiting,
        "Await a `tokio::sync::Notify` or `Barrier` instead of putting the thread to sleep.",
    ),
    Rule::calling(
        ALLOCATOR,
        When::Only(Cause::Blocked(Blocking::Lock)),
        "Use an allocator with caches for each thread, as jemalloc or mimalloc: another thread holds \
         the lock of this one.",
    ),
    Rule::calling(
        "std::sync::*::mutex std::sync::*::rwlock std::sync::reentrant_lock \
         std::sys::sync::mutex std::sys::sync::rwlock dashmap lock_api \
         parking_lot::*::raw_mutex parking_lot::*::raw_rwlock pthread_mutex_lock \
         pthread_rwlock_*",
        When::Waiting,
        "Have every holder keep to a shorter critical section, or await a lock of `tokio::sync`.",
    ),
    // The code that fills the cell runs inside it, too. This rule is for a thread that waits while
    // another one fills it.
    Rule::calling(
        "std::sync::*::once std::sync::once_lock std::sync::lazy_lock std::sys::sync::once \
         once_cell",
        When::Only(Cause::Blocked(Blocking::Lock)),
        "Fill the cell before the runtime starts, or await a `tokio::sync::OnceCell`.",
    ),
    Rule::calling(
        "std::thread::*::join std::thread::*::park* std::thread::scoped \
         std::sys::thread::*::join crossbeam_utils::sync::parker crossbeam_utils::thread \
         pthread_clockjoin_ex pthread_join",
        When::Waiting,
        "Await a `tokio::sync::oneshot` from the other thread, or wait for it in `spawn_blocking`.",
    ),
    Rule::calling(
        "std::thread::*::sleep* std::sys::thread::*::sleep* clock_nanosleep nanosleep sleep \
         usleep",
        When::Code,
        SLEEP,
    ),
    Rule::calling(
        "dns_lookup std::net::*::ToSocketAddrs std::net::*::to_socket_addrs \
         std::sys::net::*::LookupHost std::sys::net::*::lookup_host getaddrinfo gethostbyname*",
        When::Waiting,
        "Look the name up with `tokio::net::lookup_host`, or in `spawn_blocking`.",
    ),
    Rule::calling(
        "std::net std::os::unix::net std::sys::net",
        When::Asleep,
        NETWORK,
    ),
    // Code that computes. It can be on top of files and sockets, whose rules are for waiting.
    Rule::calling(
        "argon2* aws_lc_rs::pbkdf2 balloon_hash bcrypt openssl::pkcs5 password_auth \
         password_hash pbkdf2 ring::pbkdf2 scrypt",
        When::Code,
        "Password hashes are made to be slow: compute them in `spawn_blocking`.",
    ),
    Rule::calling(
        "jiter json serde_json simd_json sonic_rs",
        When::Computing,
        "Stream or paginate large JSON, or convert it in `spawn_blocking`.",
    ),
    Rule::calling(
        "bincode borsh bson calamine ciborium csv csv_core postcard prost protobuf quick_xml \
         rkyv rmp rmp_serde ron roxmltree serde_yaml serde_yml toml toml_edit xml",
        When::Computing,
        "Split up the serialising and parsing of large data, or do it in `spawn_blocking`.",
    ),
    // The format itself has been inlined.
    Rule::calling(
        "serde serde_core",
        When::Computing,
        "Stream or paginate large data (JSON or other), or do the serialising in `spawn_blocking`.",
    ),
    Rule::calling(
        "exr fast_image_resize gif image image_webp imageproc jpeg_decoder png ravif resvg tiff \
         tiny_skia webp zune_jpeg zune_png",
        When::Computing,
        "Work on images in `spawn_blocking`, or on rayon with a `oneshot` for the result.",
    ),
    Rule::calling(
        "brotli brotli_decompressor bzip2 flate2 libdeflater libz_rs_sys lz4 lz4_flex lzma_rs \
         miniz_oxide ruzstd snap xz2 zip zlib_rs zopfli zstd zstd_safe BZ2_* Brotli* LZ4_* \
         ZSTD_* deflate* inflate* libdeflate_* lzma_*",
        When::Computing,
        "Compress and decompress in `spawn_blocking`, or on rayon with a `oneshot` for the result.",
    ),
    Rule::calling(
        "aho_corasick fancy_regex onig pcre2 regex regex_automata regex_lite regex_syntax \
         pcre2_*",
        When::Computing,
        "Compile each regex once, and search long texts in `spawn_blocking` or on rayon with a `oneshot`.",
    ),
    Rule::calling(
        "aes aes_gcm aws_lc_rs aws_lc_sys chacha20poly1305 crypto_bigint curve25519_dalek ecdsa \
         ed25519_dalek elliptic_curve k256 num_bigint_dig openssl p256 p384 ring rsa \
         x25519_dalek BN_* EVP_* RSA_* aws_lc_* ring_core_*",
        When::Computing,
        "Do costly cryptography in `spawn_blocking`, or on rayon with a `oneshot` for the result.",
    ),
    Rule::calling(
        "blake2 blake3 crc crc32fast digest hmac md5 md_5 sha1 sha2 sha3 tiger twox_hash \
         whirlpool xxhash_rust blake3_*",
        When::Computing,
        "Hash large data, or many times over, in `spawn_blocking`, or on rayon with a `oneshot` for the \
         result.",
    ),
    Rule::calling(
        "std::fs::File::lock* std::sys::fs::*::lock* fd_lock file_lock fs2 fs4 flock",
        When::Waiting,
        "Take the file's lock in `spawn_blocking`, or try it, and `tokio::time::sleep` between tries.",
    ),
    // A pipe looks like a file, and a long read is more often one of a pipe.
    Rule {
        when: When::Only(Cause::Blocked(Blocking::File)),
        functions: "",
        calls: &["read", "readv"],
        advice: "Use `tokio::fs` for a file and `tokio::process` for the output of a child, or read \
                 all of it in one `spawn_blocking`.",
    },
    // Files in memory cost time on a CPU as well.
    Rule::calling(
        "std::fs std::sys::fs fs_err glob memmap2 tempfile walkdir fdatasync fsync open open64 \
         openat sync_file_range",
        When::Code,
        FILE,
    ),
    Rule::calling(
        "core::mem::drop core::ops::drop::Drop core::ptr::*::drop_in_place core::ptr::drop_glue \
         alloc::rc::*::drop_slow alloc::sync::*::drop_slow hashbrown::raw::*::drop_elements \
         hashbrown::raw::*::drop_inner_table",
        When::Only(Cause::Cpu),
        "If what is freed here is large, drop it in `spawn_blocking` or on another thread.",
    ),
    // Of an inlined drop, or of a short value in a computation.
    Rule::calling(
        "__rustc::__rust_dealloc cfree free int_free mi_free rjem_sdallocx rust_dealloc",
        When::Only(Cause::Cpu),
        "Compute in `spawn_blocking`; or only drop it there, if what is freed here is large.",
    ),
    // Rules on the cause alone.
    Rule {
        when: When::Asleep,
        functions: "",
        // An event loop waits in these calls, and this one is inside of a poll.
        calls: &["epoll_pwait", "epoll_pwait2", "epoll_wait"],
        advice: BLOCK_ON,
    },
    Rule::anything(When::Only(Cause::Blocked(Blocking::Sleep)), SLEEP),
    Rule::anything(When::Only(Cause::Blocked(Blocking::File)), FILE),
    Rule::anything(When::Only(Cause::Blocked(Blocking::Network)), NETWORK),
    Rule::anything(When::Only(Cause::Blocked(Blocking::Process)), PROCESS),
    Rule::anything(
        When::Only(Cause::Blocked(Blocking::Lock)),
        "Await a lock, channel or `Notify` of `tokio::sync` instead of putting the thread to sleep.",
    ),
    Rule::anything(
        When::Asleep,
        "Use an async counterpart of the blocking call, or make the call in `spawn_blocking`.",
    ),
    Rule::anything(
        When::Only(Cause::Cpu),
        "Move the computation to `spawn_blocking` or rayon, or split it up with `yield_now().await`.",
    ),
];
