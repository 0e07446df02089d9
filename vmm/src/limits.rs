//! Limits of the monitor, each with its reason.

/// vCPUs of a VM. Firecracker's limit; its clients count on it.
pub const VCPUS_MAX: u64 = 32;
/// Least RAM of a VM in MiB: the boot structures and a small kernel fit.
pub const RAM_MIB_MIN: u64 = 16;
/// Devices on virtio-mmio: one interrupt line each, see `layout::DEVICE_GSIS`.
pub const DEVICES_MAX: usize = 19;
/// Bytes of a configuration file: far above any real one, far below what could hurt.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a kernel: a Linux with everything built in has some 80 MiB.
pub const KERNEL_BYTES_MAX: u64 = 512 << 20;
/// Bytes of an initial RAM disk.
pub const INITRD_BYTES_MAX: u64 = 2 << 30;
/// Bytes of a section `disk-sums`: for a disk of 1 TiB.
pub const DISK_SUMS_BYTES_MAX: u64 = 128 << 20;
/// Bytes of a section `overlay-map`: four million stretches, of a delta of 16 GiB without two blocks side by side.
pub const OVERLAY_MAP_BYTES_MAX: u64 = 32 << 20;
/// Connections to the API that wait to be accepted.
pub const API_BACKLOG: i32 = 128;
/// Clients of the guest's sockets that wait until the guest has a driver: they come early, and all at once.
pub const VSOCK_BACKLOG: i32 = 1024;
/// Bytes of a Unix socket's path, without the NUL (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Bytes of what is added to the path of vsock's socket for a connection of the guest: `_4294967295`.
pub const VSOCK_PORT_BYTES_MAX: usize = 11;
/// Descriptors that a process may have whose machine has vsock: a connection takes one, the API half as many, and some are
/// left. Only if the host lets it.
pub const FILES_WITH_VSOCK: u64 = 4096;
/// Ports of the host that lead to one guest: each is a socket of passt's, and a word of its command line.
pub const PUBLISHED_PORTS_MAX: usize = 64;
/// Least number of a descriptor that is passed on purpose: those below are the standard streams.
pub const INHERITED_FD_MIN: i32 = 3;
/// How long passt may take to be ready, in milliseconds: 10 to 50 are usual.
pub const PASST_START_MS_MAX: u64 = 10_000;
/// Bytes of what passt says that are looked at, from the end.
pub const PASST_TEXT_BYTES_MAX: usize = 4096;
/// Length of an id of a drive or network interface.
pub const ID_BYTES_MAX: usize = 64;
/// Length of a guest's host name: Linux's own limit is 64 bytes with the NUL byte.
pub const HOSTNAME_BYTES_MAX: usize = 63;
/// Guest RAM runs that an image stores. Each is one mapping in every restored VM, and KVM_CREATE_VM takes longer
/// with every mapping of the process.
pub const MEMORY_RUNS_MAX: usize = 64;
/// Mappings that may take the place of a view of a file whose pages were given back. Each splits one in two; a process has
/// 65,530 by default.
pub const RELEASED_MAPPINGS_MAX: usize = 4096;
/// Files of the runtime directory that are looked at.
pub const RUNTIME_FILES_MAX: usize = 100_000;
/// Bytes of one: a few paths.
pub const RUNTIME_FILE_BYTES_MAX: u64 = 64 << 10;
/// Pages of a memory file by which its state knows it: some 0.2 ms of reading.
pub const MEMORY_SAMPLES: usize = 64;
/// Stretches of a working set: each is a call at every start.
pub const WORKING_SET_RUNS_MAX: usize = 256;
/// Bytes of a working set: all of it is given to every clone at once.
pub const WORKING_SET_BYTES_MAX: u64 = 64 << 20;
/// Bytes of files of guest memory that are read ahead for one start: a burst of starts must not push all else out of the page
/// cache.
pub const READ_AHEAD_BYTES_MAX: u64 = 256 << 20;
/// Microseconds for which KVM may be told to poll for a vCPU that waits, or the loop for a disk's next request: a tick of a slow
/// scheduler.
pub const POLL_US_MAX: u32 = 10_000;
/// How long the loop may be told to be idle before it gives back what the start needed.
pub const GIVE_BACK_MS_MAX: u32 = 3_600_000;
/// Sections of an image.
pub const SECTIONS_MAX: u32 = 4096;
/// Bytes of a section that is decoded (all but kernel, initrd and memory).
pub const STATE_SECTION_BYTES_MAX: u64 = 1 << 20;
/// CPUID leaves of a vCPU: KVM's own limit.
pub const CPU_TABLE_ENTRIES_MAX: usize = 256;
/// MSRs that a configuration may change: more than any processor has that a guest is shown.
pub const CPU_MSR_CHANGES_MAX: usize = 256;
/// MSRs that a snapshot may carry a vCPU: those that a configuration changes, and more than any host lists.
pub const VCPU_MSRS_MAX: usize = CPU_MSR_CHANGES_MAX + 256;
/// How long a vCPU may take to come out of the guest before a pause fails.
pub const PAUSE_TIMEOUT_MS: u64 = 10_000;
/// How long a pause waits for those who read what the guest has printed.
pub const PAUSE_OUTPUT_MS: u64 = 1000;
/// Bytes of what a process beside the monitor says when it fails: a pipe takes them at once.
pub const SIDE_WORDS_BYTES_MAX: usize = 2048;
/// Bytes of the deltas in memory of a machine that is saved while it runs: they are copied while it stands still, at some
/// 2 GB/s.
pub const LIVE_DELTA_BYTES_MAX: u64 = 8 << 20;
/// How long frozen memory waits for the next machine that begins from it.
pub const FROZEN_WAIT_MS: u64 = 30_000;
/// How long it waits for the first words of one that has come, in seconds.
pub const FROZEN_HELLO_S: i64 = 2;
/// Bytes of these: two regions take some 300.
pub const FROZEN_HELLO_BYTES: usize = 4096;
/// Bytes that a machine is sent before it is looked whether others wait: some 100 µs.
pub const FROZEN_CHUNK_BYTES: u64 = 128 << 10;
/// Bytes around a page that a machine has touched which it is sent at once, a power of two: some 10 µs, less than its next
/// fault takes.
pub const FROZEN_AROUND_BYTES: u64 = 64 << 10;
/// How long a machine has touched nothing that it has not, before it is sent what it has not asked for: until then it needs the
/// processors to come to run.
pub const FROZEN_QUIET_MS: u64 = 10;
/// It is sent that too when it was not quiet for so long.
pub const FROZEN_HOLD_MS: u64 = 50;
/// Faults of a machine that are served before others have their turn.
pub const FROZEN_FAULTS_PER_TURN: u32 = 64;
/// Frozen memories of a machine at a time: each keeps a copy of what the machine has written since.
pub const FROZEN_MAX: usize = 4;
/// Machines that wait until they are accepted.
pub const FROZEN_BACKLOG: i32 = 128;
/// How long a machine that is over stays for frozen memory that would end with it: as long as that waits, and a time to fill the last.
pub const FROZEN_LEFT_MS: u64 = 60_000;
/// How long the loop is idle before the machine is listed, and, unless another time is said, before the pages that only the start
/// needed are given back.
pub const SETTLED_AFTER_MS: u64 = 1000;
/// How long before that is done for a machine that is never idle.
pub const SETTLED_ANYWAY_MS: u64 = 10_000;
/// How long a guest whose agent was told SIGTERM may take to end: as long as `docker stop` gives a container.
pub const TERM_GRACE_MS: u64 = 10_000;
/// A SIGTERM that follows another so soon is the same one: sent to a process group, of which the process that waits for a
/// monitor with a terminal passes on its own.
pub const TERM_REPEAT_MS: u64 = 500;
/// What the vCPUs say that is served before signals and devices have their turn.
pub const EVENTS_PER_TURN: usize = 64;
/// Times that a device which needs a reset is told of; the rest are only counted. A guest must not be able to push all else
/// out of the events that are kept.
pub const NEEDS_RESETS_TOLD: u32 = 10;
/// Times that the boot timer's line is logged: once a boot is usual, and a restored machine may do it again.
pub const BOOT_TIMES_TOLD: u32 = 10;
/// How long the end of the process waits for those who are told of it. They are on the same host.
pub const END_TOLD_MS: u64 = 500;
/// How long a thread that has made a forbidden system call waits for the loop to end the process in good order.
pub const VIOLATION_SERVED_MS: u32 = 1000;
/// How long who watches the process that serves guest memory waits for the loop to end this one in good order: the loop may
/// itself wait for a page that does not come.
pub const LOST_MEMORY_SERVED_MS: u64 = 1000;
/// Bytes of a file of system-call filters: LightV's own lists together have some 40 KiB.
pub const FILTER_FILE_BYTES_MAX: u64 = 1 << 20;
/// Addresses at which a guest's exits are told apart in a profile: a guest that uses more has something else in mind.
pub const EXIT_PLACES_MAX: usize = 256;
/// Stretches of pages that a profile names.
pub const TOUCHED_RUNS_MAX: usize = 64;
/// How often a vCPU that does not come out is signalled again.
pub const KICK_INTERVAL_MS: u64 = 20;

/// Bytes of the name of one of KVM's counters: it says 48 (KVM_STATS_NAME_SIZE).
pub const KVM_STAT_NAME_BYTES_MAX: u32 = 256;

/// KVM's counters of a vCPU: there are some fifty.
pub const KVM_STATS_MAX: u32 = 1024;

/// Entries of a directory that are looked at for what killed processes have left there.
pub const LEFTOVERS_SCANNED_MAX: usize = 4096;
