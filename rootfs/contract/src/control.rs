//! The register map of the control device (docs/control-device.md). Offsets in bytes.

/// Name of the kernel's parameter that gives the device's guest-physical address, in hexadecimal with `0x`.
pub const PARAMETER: &str = "lightv.control";
/// Length of the device.
pub const BYTES: usize = 0x10000;
/// What stands at [`read::MAGIC`]: the bytes `LVCT`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"LVCT");
/// What stands at [`read::VERSION`].
pub const VERSION: u32 = 1;
/// Bit 0 of [`read::FLAGS`]: the run has a terminal, and the program gets it (console port 0) as its own.
pub const FLAG_TTY: u32 = 1;
/// Number of a `MARK`: first instruction of the user's own code.
pub const MARK_USER_CODE: u32 = 1;

/// What is read.
pub mod read {
    /// u32.
    pub const MAGIC: usize = 0x000;
    /// u32: [`super::VERSION`]. A guest that finds a higher number may go on: fields are only added.
    pub const VERSION: usize = 0x004;
    /// u64: 0 after a boot, one more after each restore.
    pub const RESTORES: usize = 0x008;
    /// 16 bytes, other ones in every boot and restore.
    pub const GENERATION: usize = 0x010;
    /// 32 random bytes, fresh in every boot and restore.
    pub const SEED: usize = 0x020;
    /// u64: the host's wall clock in nanoseconds since 1970.
    pub const WALL_CLOCK_NS: usize = 0x040;
    /// u64: the guest's time stamp counter at that moment.
    pub const WALL_CLOCK_TSC: usize = 0x048;
    /// u32: its frequency in kHz, 0 if unknown.
    pub const TSC_KHZ: usize = 0x050;
    /// u32: number of vCPUs.
    pub const VCPUS: usize = 0x054;
    /// u64: guest RAM in bytes.
    pub const RAM_BYTES: usize = 0x058;
    /// u32 offset, u32 bytes, u32 count: arguments, each ended by NUL.
    pub const ARGS: usize = 0x060;
    /// The same: environment, `NAME=value`.
    pub const ENV: usize = 0x06c;
    /// u32: [`super::FLAG_TTY`].
    pub const FLAGS: usize = 0x078;
    /// u32 offset, u32 bytes: [`crate::agent::AgentSpec`] as JSON; 0 bytes when there is none.
    pub const AGENT: usize = 0x07c;
}

/// Doorbells.
pub mod write {
    /// 32 bits: ready to be saved. The next instruction runs in the saved guest and in each restored one.
    pub const READY: usize = 0x800;
    /// 64 bits, address and length of a buffer: text for standard output.
    pub const PRINT: usize = 0x808;
    /// The same for standard error.
    pub const PRINT_ERR: usize = 0x810;
    /// 32 bits: the exit status of the program, and the end of the machine.
    pub const EXIT: usize = 0x818;
    /// 32 bits: a time stamp.
    pub const MARK: usize = 0x820;
    /// 32 bits: refresh the wall clock.
    pub const CLOCK: usize = 0x828;
    /// 32 bits: the guest has panicked.
    pub const PANIC: usize = 0x830;
}
