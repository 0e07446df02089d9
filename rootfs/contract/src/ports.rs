//! Ports of the virtio console (virtio 1.2, 5.3, with `VIRTIO_CONSOLE_F_MULTIPORT`): found by name in
//! `/sys/class/virtio-ports/vport*p*/name`.

/// Port 0: the terminal `/dev/hvc0` (`VIRTIO_CONSOLE_CONSOLE_PORT`). Input and output go by it when the run has a
/// terminal.
pub const TERMINAL: &str = "lightv.terminal";
/// Port 1: the program's standard output when the run has no terminal. To the host only; the host never closes it.
pub const STDIO: &str = "lightv.stdio";
/// Port 2: the program's standard error when the run has no terminal. To the host only.
pub const STDERR: &str = "lightv.stderr";
/// Port 3: lines of text from the monitor to the agent, each ended by `\n`. The agent holds it open from its start to its
/// end; a monitor that finds it closed has no agent to talk to.
///
/// `signal N`: send signal N to the program.
pub const AGENT: &str = "lightv.agent";
/// Port 4: the program's standard input when the run has no terminal. From the host only, which closes it when there is no
/// more. A port of its own: a Linux driver lets nobody write to a port that the host has closed, so the end of the input
/// on [`STDIO`] would be the end of the output as well.
pub const STDIN: &str = "lightv.stdin";

/// Names in the order of the port numbers.
pub const NAMES: [&str; 5] = [TERMINAL, STDIO, STDERR, AGENT, STDIN];

/// Longest line on [`AGENT`], `\n` included, in bytes.
pub const AGENT_LINE_BYTES_MAX: usize = 256;
