//! The LightV control device: who this guest is in this run, and the doorbells (docs/control-device.md).

use crate::local::Local;
use crate::mmio::Window;

const WINDOW_BYTES: usize = 64 * 1024;
const MAGIC_VALUE: u32 = 0x5443_564c;

/// Registers: offsets in bytes, as in docs/control-device.md.
mod reg {
    pub const MAGIC: usize = 0x000;
    pub const RESTORES: usize = 0x008;
    pub const GENERATION: usize = 0x010;
    pub const SEED: usize = 0x020;
    pub const WALL_CLOCK_NS: usize = 0x040;
    pub const TSC_KHZ: usize = 0x050;
    pub const VCPUS: usize = 0x054;
    pub const RAM_BYTES: usize = 0x058;
    pub const ARGS_OFFSET: usize = 0x060;
    pub const ARGS_LEN: usize = 0x064;
    pub const ARGS_COUNT: usize = 0x068;
    pub const ENV_OFFSET: usize = 0x06c;
    pub const ENV_LEN: usize = 0x070;

    pub const READY: usize = 0x800;
    pub const PRINT: usize = 0x808;
    pub const PRINT_ERR: usize = 0x810;
    pub const EXIT: usize = 0x818;
    pub const MARK: usize = 0x820;
    pub const PANIC: usize = 0x830;
}

/// Most bytes one `PRINT` carries.
pub const PRINT_BYTES_MAX: usize = 65_535;
const PRINT_LEN_SHIFT: u32 = 48;

/// Identity of a run: differs in every boot and every restore.
pub type Generation = [u8; 16];

/// Where output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output of the monitor.
    Out,
    /// Standard error of the monitor.
    Err,
}

/// The device.
#[derive(Clone, Copy, Debug)]
pub struct Control(Window);

#[unsafe(link_section = ".hot.control")]
static CONTROL: Local<Option<Control>> = Local::new(None);

/// The device, if the command line named one.
pub fn get() -> Option<Control> {
    CONTROL.get()
}

/// Takes the device at `address` into use, if it is there.
pub fn init(address: usize) {
    // SAFETY: the command line names a device's address; it lies in the hole at 3-4 GiB, which is identity-mapped.
    let control = Control(unsafe { Window::new(address, WINDOW_BYTES) });
    if control.0.read::<u32>(reg::MAGIC) == MAGIC_VALUE {
        CONTROL.set(Some(control));
    }
}

impl Control {
    /// Number of restores since the boot.
    pub fn restores(self) -> u64 {
        self.0.read(reg::RESTORES)
    }

    /// Identity of this run.
    pub fn generation(self) -> Generation {
        let halves: [u64; 2] = [
            self.0.read(reg::GENERATION),
            self.0.read(reg::GENERATION + 8),
        ];
        let [low, high] = halves.map(u64::to_le_bytes);
        let mut generation = [0; 16];
        generation[..8].copy_from_slice(&low);
        generation[8..].copy_from_slice(&high);
        generation
    }

    /// Random bytes of this run.
    pub fn seed(self) -> [u8; 32] {
        self.0.read(reg::SEED)
    }

    /// Host wall clock at the start or restore, nanoseconds since 1970-01-01 UTC.
    pub fn wall_clock_ns(self) -> u64 {
        self.0.read(reg::WALL_CLOCK_NS)
    }

    /// Frequency of the time stamp counter, if known.
    pub fn tsc_khz(self) -> Option<u32> {
        Some(self.0.read(reg::TSC_KHZ)).filter(|&khz| khz != 0)
    }

    /// Number of vCPUs.
    pub fn vcpus(self) -> u32 {
        self.0.read(reg::VCPUS)
    }

    /// Size of RAM in bytes.
    pub fn ram_bytes(self) -> u64 {
        self.0.read(reg::RAM_BYTES)
    }

    /// Arguments of this run, each ended by a NUL byte; `None` if the run brought none.
    pub fn args(self) -> Option<&'static [u8]> {
        let count: u32 = self.0.read(reg::ARGS_COUNT);
        (count > 0).then(|| self.strings(reg::ARGS_OFFSET, reg::ARGS_LEN))
    }

    /// Environment of this run: `NAME=value`, each ended by a NUL byte.
    pub fn env(self) -> &'static [u8] {
        self.strings(reg::ENV_OFFSET, reg::ENV_LEN)
    }

    /// The bytes change only while this vCPU is stopped, so a slice may be lent; callers do not keep it over `READY`.
    fn strings(self, offset: usize, len: usize) -> &'static [u8] {
        let offset = self.0.read::<u32>(offset) as usize;
        let len = self.0.read::<u32>(len) as usize;
        self.0.bytes(offset, len).unwrap_or_default()
    }

    /// The guest is ready: an image may be saved here.
    pub fn ready(self) {
        self.0.write(reg::READY, 1_u32);
    }

    /// Prints up to [`PRINT_BYTES_MAX`] bytes.
    pub fn print(self, stream: Stream, bytes: &[u8]) {
        let doorbell = match stream {
            Stream::Out => reg::PRINT,
            Stream::Err => reg::PRINT_ERR,
        };
        for piece in bytes.chunks(PRINT_BYTES_MAX) {
            let address = piece.as_ptr() as u64;
            self.0
                .write(doorbell, address | (piece.len() as u64) << PRINT_LEN_SHIFT);
        }
    }

    /// Time stamp for `--timings`.
    pub fn mark(self, number: u32) {
        self.0.write(reg::MARK, number);
    }

    /// Ends the guest with `status`.
    pub fn exit(self, status: u8) {
        self.0.write(reg::EXIT, u32::from(status));
    }

    /// Ends the guest: it has panicked and has said why.
    pub fn panic(self) {
        self.0.write(reg::PANIC, 1_u32);
    }
}
