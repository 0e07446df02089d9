//! Limits, each with its reason.

use std::time::Duration;

/// Bytes of a body: Firecracker's default; `--http-api-max-payload-size` changes it.
pub const BODY_BYTES_MAX: usize = 51_200;

/// Bytes of a request's head. Requests of the contract need some 200; a browser sends 2 KiB.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Header lines of a request.
pub const HEADERS_MAX: usize = 64;

/// Connections at a time. One takes some 10 KiB, and one descriptor of the 1024 that a process usually may have: the
/// other half is for disks, taps and events.
pub const CONNECTIONS_MAX: usize = 512;

/// From a request's first byte to its last. Clients are on the same host; one that needs longer is stuck.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a connection may be silent between requests. Pools of clients keep connections for minutes; hours mean that
/// they have forgotten them.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(3600);

/// Clients at a time that are told what happens: a part of the connections, so that the others stay free.
pub const EVENT_STREAMS_MAX: usize = 64;

/// Machines that may begin from another at one request: more than a host starts before the last of them has come.
pub const FORK_CLONES_MAX: u32 = 1000;

/// How often a client that is told what happens hears of us when nothing does.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long such a client may take no byte, although heartbeats are for it too: four of them.
pub const STREAM_STALL_TIME_MAX: Duration = Duration::from_secs(60);

/// Events that are kept for clients that come late or are slow: some 30 KiB.
pub const EVENTS_KEPT: usize = 256;

/// Events that are written at a time.
pub const EVENTS_PER_PIECE: usize = 16;

/// What the accepting loop waits after the host refused it a connection: descriptors may come back.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Stack of the server's thread. It parses JSON of at most 128 levels, each some 500 bytes of stack.
pub const STACK_BYTES: usize = 512 << 10;

/// Stack of the controller's thread, on which the monitor builds and saves machines: what the main thread has by default
/// in most programs. Only what is used is memory.
pub const MACHINE_STACK_BYTES: usize = 2 << 20;

/// Characters of a path that are logged.
pub const LOGGED_PATH_CHARS: usize = 200;
/// Characters of a refusal that are logged.
pub const LOGGED_FAULT_CHARS: usize = 1000;

/// vCPUs of a machine, as the contract has it.
pub const VCPUS_MAX: u64 = 32;
