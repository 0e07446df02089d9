//! Limits of the devices, each with its reason.

use std::time::Duration;

/// Entries of each queue of a disk: what Linux drivers take as the usual depth, and Firecracker offers.
pub const BLOCK_QUEUE_SIZE: u16 = 256;
/// Queues of a disk: one for each vCPU of a guest that is not large. One loop serves them all.
pub const BLOCK_QUEUES_MAX: u16 = 16;
/// Entries of each queue of a network card: as for disks.
pub const NET_QUEUE_SIZE: u16 = 256;
/// Pairs of queues of a network card: one for each vCPU of a guest that is not large. One loop serves them all, so more bring
/// nothing, and each has a descriptor and two doorbells.
pub const NET_QUEUE_PAIRS_MAX: u16 = 8;
/// Entries of the control queue of a network card: a driver waits for each command.
pub const NET_CONTROL_QUEUE_SIZE: u16 = 64;
/// Commands carried out before other devices have their turn: to have a queue of a tap take part in its traffic, or not, costs
/// the host some 0.1 ms.
pub const NET_COMMANDS_PER_TURN: usize = 4;
/// Entries of the queue of the entropy source: a driver has one or two requests open.
pub const ENTROPY_QUEUE_SIZE: u16 = 64;
/// Descriptors of a chain, in an indirect table or not: a driver must not use more than the queue size
/// (virtio 1.2 §2.7.5.3.1), and a system call takes 1024 parts at most.
pub const CHAIN_DESCRIPTORS_MAX: u16 = 256;
/// Chains whose space a queue keeps for the next ones: as many as a large frame takes of usual buffers.
pub const SPARE_CHAINS_MAX: usize = 64;
/// Data descriptors that a disk request may have: a chain without header and status byte.
pub const BLOCK_SEGMENTS_MAX: u32 = 254;
/// Data bytes of one disk request. Linux asks for 1.25 MiB at most unless told otherwise; a chain can name 4 GiB, and
/// the loop must not be held for that long.
pub const BLOCK_REQUEST_BYTES_MAX: u64 = 64 << 20;
/// Sectors of one discard or write of zeroes: 1 GiB. A driver splits what is longer.
pub const BLOCK_DISCARD_SECTORS_MAX: u32 = 2 << 20;
/// Bytes of a disk that can have an overlay: its maps have 128 MiB then, of which as much takes memory as is used.
pub const OVERLAY_DISK_BYTES_MAX: u64 = 4 << 40;
/// Blocks by which a delta knows the disk that it was made over: some 0.2 ms of reading.
pub const OVERLAY_SAMPLES: u64 = 64;
/// How long a start waits for a disk that another machine has: one that was killed has not gone at once.
pub const DISK_LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Disk requests served before other devices have their turn.
pub const BLOCK_REQUESTS_PER_TURN: usize = 64;
/// Disk requests that are begun together: more wait for each other, and a disk that is given all at once has nothing to do while they are
/// looked at. A system call for each of them, and on a disk of a host that is a guest itself an exit.
pub const BLOCK_REQUESTS_PER_SUBMIT: usize = 8;
/// Data bytes after which a disk lets other devices have their turn: some 10 ms of copying. What is discarded or made zero counts
/// too.
pub const BLOCK_BYTES_PER_TURN: u64 = 64 << 20;
/// Data bytes of the requests of a disk that are under way, after which no more begin: a reset waits for them, and with it the loop.
/// Four of the longest, or a full queue of the usual ones.
pub const BLOCK_BYTES_UNDER_WAY_MAX: u64 = 256 << 20;
/// How long a disk that stops tries to have the kernel begin its last requests, which it refuses for want of memory.
pub const BLOCK_SUBMIT_PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries.
pub const BLOCK_SUBMIT_STEP: Duration = Duration::from_millis(5);
/// Bytes of a network frame with its header: what a tap accepts, 65,535 bytes of IP packet, 15 of Ethernet and VLAN,
/// 12 of header.
pub const FRAME_BYTES_MAX: usize = 65_562;
/// Bytes kept of what a network in user space has sent: one frame of the longest with its length, and some more.
pub const STREAM_INBOX_BYTES: usize = 128 << 10;
/// Frames sent or received before other devices have their turn.
pub const NET_FRAMES_PER_TURN: usize = 64;
/// Bytes of a frame to the metadata service. A driver that leaves segmentation to the device sends up to a window at once.
pub const MMDS_FRAME_BYTES_MAX: usize = 16 << 10;
/// Frames of the metadata service that wait for the guest's buffers. More are lost, and sent again by TCP.
pub const MMDS_FRAMES_WAITING_MAX: usize = 64;
/// Connections to the metadata service of one interface: Firecracker's number.
pub const MMDS_CONNECTIONS_MAX: usize = 30;
/// Sockets that wait for the next connections: more may come before the first is looked at.
pub const MMDS_LISTENERS: usize = 4;
/// Bytes that a guest may send ahead on a connection to the metadata service: a request.
pub const MMDS_WINDOW_BYTES: usize = 4096;
/// Bytes under way to the guest on such a connection.
pub const MMDS_SEND_BYTES: usize = 8192;
/// Bytes of a request to the metadata service, its body included: a path and a token have some hundred.
pub const MMDS_REQUEST_BYTES_MAX: usize = 8192;
/// Lines of the head of such a request.
pub const MMDS_HEADERS_MAX: usize = 64;
/// Requests of one connection that are answered before others have their turn.
pub const MMDS_REQUESTS_PER_TURN: usize = 4;
/// Bytes of answers that wait for their readers, after which no more are made. One answer is as large as the operator has
/// let the metadata be.
pub const MMDS_ANSWERS_BYTES_MAX: usize = 256 << 10;
/// How long a connection to the metadata service may be silent, in milliseconds: a guest may be slow.
pub const MMDS_SILENT_MS: u64 = 60_000;
/// How long one must have been of no use to give way to another, in milliseconds.
pub const MMDS_GIVES_WAY_MS: u64 = 1000;
/// Addresses of the guest whose MAC address is kept: one for each connection, and some more.
pub const MMDS_NEIGHBOURS_MAX: usize = 64;
/// How often frames are handed to the guest and more made of what waits, before others have their turn.
pub const MMDS_ROUNDS_PER_TURN: usize = 4;
/// Least time to the next look at the metadata service's connections, in milliseconds.
pub const MMDS_PAUSE_MS: u64 = 1;
/// Time to the next look while the guest takes no frames, in milliseconds: its next buffers end the wait.
pub const MMDS_STUCK_PAUSE_MS: u64 = 1000;
/// Random bytes given to one request; the driver asks again for the rest. A request may name far more memory than the
/// guest has.
pub const ENTROPY_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Requests of the entropy source served before other devices have their turn.
pub const ENTROPY_REQUESTS_PER_TURN: usize = 16;
/// Random bytes after which the entropy source lets other devices have their turn: about 1 ms.
pub const ENTROPY_BYTES_PER_TURN: usize = 256 << 10;
/// Random bytes fetched by one call: a buffer on the stack.
pub const ENTROPY_CHUNK_BYTES: usize = 4096;
/// Entries of each queue of the balloon: what Firecracker offers, and as many chains as Linux has pages under way.
pub const BALLOON_QUEUE_SIZE: u16 = 256;
/// Page frame numbers of one chain: 16 times what Linux puts into one.
pub const BALLOON_PFNS_PER_CHAIN_MAX: u64 = 4096;
/// Bytes of free memory that one chain may name. Linux reports 32 blocks of 4 MiB; a chain can name all of RAM, and the loop
/// must not be held for that long.
pub const BALLOON_CHAIN_BYTES_MAX: u64 = 256 << 20;
/// Chains of the balloon served before other devices have their turn.
pub const BALLOON_CHAINS_PER_TURN: usize = 64;
/// Bytes given back after which other devices have their turn: some 20 ms.
pub const BALLOON_BYTES_PER_TURN: u64 = 256 << 20;
/// Stretches of memory given back after which other devices have their turn: each is a call to the host.
pub const BALLOON_RANGES_PER_TURN: usize = 4096;
/// Entries of a report of statistics that are looked at: Linux has 16.
pub const BALLOON_STATS_PER_REPORT: usize = 64;
/// Entries of the queue of keys for a terminal: a driver keeps a page for each.
pub const CONSOLE_TERMINAL_RX_SIZE: u16 = 8;
/// Entries of the queue of standard input: 128 KiB under way in a Linux guest.
pub const CONSOLE_INPUT_SIZE: u16 = 32;
/// Entries of the queue of lines for the agent: as many signals as it may leave unread before it counts as stuck.
pub const CONSOLE_LINES_SIZE: u16 = 8;
/// Entries of a queue of output: 1 MiB under way in a Linux guest, which writes 32 KiB at most in one buffer.
pub const CONSOLE_OUTPUT_SIZE: u16 = 32;
/// Entries of the queue of messages to the driver: more than it has to be told at once.
pub const CONSOLE_CONTROL_RX_SIZE: u16 = 32;
/// Entries of the queue of messages from the driver, which waits for each.
pub const CONSOLE_CONTROL_TX_SIZE: u16 = 8;
/// Entries of the queue of a port in the direction that it does not have.
pub const CONSOLE_UNUSED_SIZE: u16 = 2;
/// Bytes of one buffer of output. Linux writes 32 KiB at most, or what a pipe holds; a chain can name 4 GiB.
pub const CONSOLE_BUFFER_BYTES_MAX: u64 = 1 << 20;
/// Bytes that one call to the host moves: a pipe of the usual size.
pub const CONSOLE_CHUNK_BYTES: usize = 64 << 10;
/// Buffers of one port that are served before others have their turn.
pub const CONSOLE_BUFFERS_PER_TURN: usize = 64;
/// Bytes of one port after which others have their turn: some 0.1 ms of copying.
pub const CONSOLE_BYTES_PER_TURN: usize = 1 << 20;
/// How long a machine that has ended waits for the reader of its output before it looks whether it is to give up, in
/// milliseconds.
pub const CONSOLE_FINISH_STEP_MS: u16 = 100;
/// Entries of the queues of packets of the socket device: as in Firecracker.
pub const VSOCK_QUEUE_SIZE: u16 = 256;
/// Connections of the socket device: as in Firecracker. Each takes a descriptor of the host.
pub const VSOCK_CONNECTIONS_MAX: usize = 1023;
/// Bytes of a connection that are kept for a program of the host that does not take them: what the guest may have under
/// way. As in Firecracker; 64 MiB for all connections together, if nobody takes anything.
pub const VSOCK_BUFFER_BYTES: usize = 64 << 10;
/// Answers to packets without a connection that wait for a buffer of the guest. When there are more, no more packets are
/// taken from it: twice what it may have connections, so that a driver that sends without receiving meanwhile can end all of
/// them at once and not wait for ever (virtio 1.2 §5.10.6.1).
pub const VSOCK_REPLIES_MAX: usize = 2048;
/// Clients of the host that have not said yet where they want to go. More wait in the kernel.
pub const VSOCK_GREETINGS_MAX: usize = 128;
/// Bytes of what they say: `CONNECT 4294967295` has 19 with its end.
pub const VSOCK_GREETING_BYTES_MAX: usize = 32;
/// How long they may take for it.
pub const VSOCK_GREETING_MS: u64 = 10_000;
/// How long a guest may take to answer that it takes a connection. Its driver refuses at once when nobody listens.
pub const VSOCK_REQUEST_MS: u64 = 10_000;
/// How long it may take to let a connection go that the host has closed (virtio 1.2 §5.10.6.6 has 8 s).
pub const VSOCK_CLOSE_MS: u64 = 8000;
/// How long a program of the host may take no byte of a connection that the guest has closed.
pub const VSOCK_DRAIN_MS: u64 = 60_000;
/// How often is looked for what takes too long, while anything might.
pub const VSOCK_TICK_MS: u64 = 250;
/// Packets in each direction after which other devices have their turn.
pub const VSOCK_PACKETS_PER_TURN: usize = 64;
/// Bytes in each direction after which they have it: some 0.1 ms of copying.
pub const VSOCK_BYTES_PER_TURN: usize = 1 << 20;
/// Sockets of the host that are looked at before they have it.
pub const VSOCK_EVENTS_PER_TURN: usize = 64;
/// Clients let in before they have it.
pub const VSOCK_ACCEPTED_PER_TURN: usize = 16;
/// How long clients wait, after a restore, for the guest to let go of the connections that it had.
pub const VSOCK_RESET_MS: u64 = 1000;
/// How long the end of a machine waits for programs of the host that do not take the guest's last bytes.
pub const VSOCK_FINISH_MS: u64 = 1000;
/// How often it looks meanwhile whether it is to give up.
pub const VSOCK_FINISH_STEP_MS: u16 = 100;
/// Bytes of arguments and environment of a run, NUL bytes included: 64 KiB of control page less its first 4 KiB.
pub const CONTROL_STRINGS_BYTES_MAX: usize = 61_440;
/// Bytes that one print doorbell copies: its length field has 16 bits.
pub const PRINT_BYTES_MAX: usize = 65_535;
/// Time in which a rate limiter's bucket becomes full, at most: a hundred years, far below what the clock can say.
pub const LIMITER_REFILL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
