//! Limits, each with its reason.

use std::time::Duration;

/// Connections at a time. One takes some 10 KiB and a descriptor.
pub const CONNECTIONS_MAX: u64 = 1024;

/// Starts that are carried out at the same time, for each processor: more only wait for each other.
pub const STARTS_PER_CPU: usize = 2;

/// Threads that write records and copy images, beside those that start monitors.
pub const DISK_THREADS: usize = 4;

/// Descriptors that are kept for files, monitors' streams and the agent itself.
pub const FILES_KEPT: u64 = 32;

/// Descriptors of a sandbox: its process, which one of a pool has twice, beside its socket; one that is taken over has two
/// connections until it has said what it does, and then one.
pub const FILES_PER_SANDBOX: u64 = 3;

/// Sandboxes that have ended and are remembered; the oldest is forgotten, with its log.
pub const ENDED_KEPT: usize = 1024;

/// Names of images.
pub const IMAGES_MAX: usize = 1024;

/// Bytes of a body.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Header lines of a request.
pub const HEADERS_MAX: usize = 64;

/// How long a request's head or body may take, and how long a connection may be silent between requests.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);

/// How long a client may take no byte of its answer.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(60);

/// What the accepting loop waits after the host refused it a connection: descriptors may come back.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client over TCP may take to agree on TLS.
pub const GREETING_TIME_MAX: Duration = Duration::from_secs(10);

/// Bytes of a certificate's or key's file.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a file of tokens, and tokens in it: all are compared with what a client sends.
pub const TOKEN_FILE_BYTES_MAX: u64 = 64 << 10;
/// See [`TOKEN_FILE_BYTES_MAX`].
pub const TOKENS_MAX: usize = 64;

/// Between two looks at what sandboxes take of the host: more often nobody sees a difference, and a thousand sandboxes take
/// some 20 ms to look at.
pub const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// Labels of a sandbox.
pub const LABELS_MAX: usize = 64;

/// Bytes of a label's name or value.
pub const LABEL_BYTES_MAX: usize = 256;

/// Arguments of a guest and variables of its environment, each.
pub const WORDS_MAX: usize = 1024;

/// Bytes of those together: what the guest's page for them holds is less, and is checked by the monitor.
pub const WORD_BYTES_MAX: usize = 64 << 10;

/// Networks of a sandbox.
pub const NETS_MAX: usize = 16;

/// How long a monitor may take until it serves.
pub const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Between two looks at a monitor that does not serve yet.
pub const START_POLL: Duration = Duration::from_millis(1);

/// How long a monitor may take to answer a request of the agent: a pause waits for the guest's I/O.
pub const VM_ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a living VM may take to answer when the agent starts.
pub const ADOPT_ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a process may take to end after SIGKILL: KVM takes up to 24 ms, a host without memory longer.
pub const KILL_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a monitor may take to press keys.
pub const PRESS_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a monitor may take to say whether it runs, which it says at any time.
pub const VM_STATE_TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes of a monitor's answer.
pub const VM_ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long the agent waits for its folder: a monitor that is just being started holds its lock until it is executed.
pub const LOCK_TIME_MAX: Duration = Duration::from_secs(10);

/// Events that are kept for readers that come late or are slow: some 500 KiB.
pub const EVENTS_KEPT: usize = 4096;

/// Events that are written at a time.
pub const EVENTS_PER_PIECE: usize = 64;

/// How often a reader of events or logs hears of us when nothing happens, so that one that is gone is seen to be.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

/// Bytes of a log that are sent at a time.
pub const LOG_PIECE_BYTES: usize = 64 << 10;

/// Between two looks at a log that may have grown.
pub const LOG_POLL: Duration = Duration::from_millis(100);

/// Bytes of a log's end that `tail` looks at.
pub const TAIL_BYTES_MAX: u64 = 4 << 20;

/// Between two looks at the logs' sizes, and at what could not be written.
pub const CARE_INTERVAL: Duration = Duration::from_secs(5);

/// Bytes of a file of the state folder that are read.
pub const STATE_FILE_BYTES_MAX: u64 = 4 << 20;

/// Files in the folder of a jail that are taken away: a machine makes one for each of its sockets and forks.
pub const JAIL_FILES_MAX: usize = 100_000;

/// Files of the state folder that are looked at.
pub const STATE_FILES_MAX: usize = 100_000;

/// How long what a monitor has said of its end may take to arrive after it.
pub const TOLD_TIME_MAX: Duration = Duration::from_secs(1);

/// Pieces of an answer that wait for a client: it is asked for the next one when it has taken those.
pub const PIECES_WAITING: usize = 2;

/// Requests of which the agent waits for the answers when it is told to end.
pub const END_TIME_MAX: Duration = Duration::from_secs(20);

/// VMs of a pool at the most.
pub const POOL_MAX: u32 = 4096;

/// VMs that a pool makes at the same time at the most.
pub const POOL_PARALLEL_MAX: u32 = 64;

/// Pools.
pub const POOLS_MAX: usize = 64;

/// Descriptors of a VM that is ready: its socket and its process.
pub const FILES_PER_READY: u64 = 2;

/// Between two looks of a pool at its demand and at machines that have ended.
pub const POOL_TICK: Duration = Duration::from_secs(1);

/// How long a pool orders no machine after one was refused.
pub const POOL_REST: Duration = Duration::from_secs(1);

/// How long a pool waits after a template that failed, at the first time; then twice as long each time.
pub const POOL_PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest such pause.
pub const POOL_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Between two looks at processes that are about to end.
pub const REAP_INTERVAL: Duration = Duration::from_millis(5);

/// How long a client of the run socket may take to say what it wants.
pub const RUN_REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a run whose client is gone may take to end after SIGTERM.
pub const RUN_END_TIME_MAX: Duration = Duration::from_secs(10);

/// Programs that the agent runs in guests at the same time: each has a descriptor, its input and, if its guest and its client are
/// as bad as can be, some 300 KiB of output.
pub const PROGRAMS_MAX: u64 = 256;

/// Milliseconds that a program may be given, at the most: a day.
pub const PROGRAM_TIME_MS_MAX: u64 = 86_400_000;

/// How long a guest may take to end a program that was sent SIGKILL.
pub const PROGRAM_KILL_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a microVM whose connections have ended may take to be seen to have ended too.
pub const PROGRAM_LOST_TIME_MAX: Duration = Duration::from_secs(2);

/// Bytes that are read of a guest at a time.
pub const GUEST_PIECE_BYTES: usize = 32 << 10;

/// Bytes of output in a line of the answer to exec: as JSON they are at most six times as many.
pub const EXEC_LINE_BYTES: usize = 8 << 10;

/// Bytes of such lines that are sent at a time.
pub const EXEC_PIECE_BYTES: usize = 16 << 10;

/// Bytes of lists that wait for clients who do not read, all together: ten thousand sandboxes are some 5 MiB.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
