//! Ports of the virtio console (virtio 1.2, 5.3, with `VIRTIO_CONSOLE_F_MULTIPORT`): found by name in
//! `/sys/class/virtio-ports/vport*p*/name`.

/// Port 0: the terminal `/dev/hvc0` (`VIRTIO_CONSOLE_CONSOLE_PORT`). Input and output go by it when the run has a
/// terminal.
pub const TERMINAL: &str = "lightv.terminal";
/// Port 1: the program's standard input and output when the run has no terminal.
pub const STDIO: &str = "lightv.stdio";
/// Port 2: the program's standard error when the run has no terminal. To the host only.
pub const STDERR: &str = "lightv.stderr";
/// Port 3: lines of text from the monitor to the agent, each ended by `\n`. The agent holds it open from its start to its
/// end; a monitor that finds it closed has no agent to talk to.
///
/// `signal N`: send signal N to the program.
pub const AGENT: &str = "lightv.agent";

/// Names in the order of the port numbers.
pub const NAMES: [&str; 4] = [TERMINAL, STDIO, STDERR, AGENT];

/// Longest line on [`AGENT`], `\n` included, in bytes.
pub const AGENT_LINE_BYTES_MAX: usize = 256;
