//! ACPI tables (ACPI 6.5), of the hardware-reduced kind (§4.1): no power management hardware and no PC's fixed devices
//! are promised but two registers, one to sleep and one to reset.
//!
//! ```text
//! RSDP -> XSDT -> FADT -> DSDT   sleep and reset registers; virtio-mmio devices, COM1, keyboard, pvpanic, power button,
//!                                generation ID, event device
//!              -> MADT           local APICs, I/O APIC, LINT1
//! ```
//!
//! No interrupt source override is needed: every line of the I/O APIC has its own number, and an ISA line is an edge,
//! active high, in ACPI too.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package,
    Path, ResourceTemplate, Scope, Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use lightv_devices::i8042;
use vm_memory::Address;

use super::board::{BoardFacts, MmioPlace};
use super::layout;

/// Whose tables they are: makers' names in every table's header (§5.2.6).
const OEM_ID: [u8; 6] = *b"LIGHTV";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
/// Length of a table's header (§5.2.6).
const HEADER_BYTES: u32 = 36;
/// Tables begin at multiples of this; the root pointer must (§5.2.5.1).
const ALIGNMENT: usize = 16;
/// DSDT revision (§5.2.11.1): from 2 on integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// MADT revision (§5.2.12).
const MADT_REVISION: u8 = 6;
/// Boot architecture flags (§5.2.9.3): a keyboard controller, no VGA, no CMOS clock.
const HAS_I8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;
/// What the keyboard controller takes for a reset, see `lightv_devices::i8042`.
const RESET_PORT: u16 = i8042::COMMAND_PORT;
const RESET_VALUE: u8 = 0xfe;
/// MADT structure type 4, local APIC NMI (§5.2.12.7): length 6, all processors, flags as the bus has them, LINT1.
const LINT1_IS_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];
/// What `\_S5` names to be written as sleep type for power-off (§7.4.2): 0–7, any.
const SLEEP_TYPE_OFF: u8 = 5;
/// Sleep control register (§4.8.3.7): sleep type in bits 2–4, enable in bit 5.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
const SLEEP_ENABLE: u8 = 1 << 5;
/// A device's notification (§5.6.6): 0x80 and above mean what the device says. A generation ID has changed, a power
/// button was pressed.
const NOTIFY_EVENT: u8 = 0x80;

/// What the event device tells: bits of its status register.
pub mod event {
    /// The generation ID is another one.
    pub const GENERATION: u8 = 1 << 0;
    /// The power button was pressed.
    pub const POWER_BUTTON: u8 = 1 << 1;
}

/// Whether `value`, written to the sleep control register, is a power-off.
#[must_use]
pub const fn is_power_off(value: u8) -> bool {
    value & SLEEP_ENABLE != 0 && (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF
}

/// All tables, as they lie in RAM from [`layout::ACPI_TABLES`] on: the root pointer first.
#[must_use]
pub fn build(facts: &BoardFacts) -> Vec<u8> {
    let mut area = Area(vec![0; Rsdp::len()]);
    let dsdt = area.place(&dsdt(&facts.devices));
    let fadt = area.place(&fadt(dsdt).finalize());
    let madt = area.place(&madt(facts.vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.place(&xsdt);
    let root = bytes(&Rsdp::new(OEM_ID, xsdt));
    area.0[..root.len()].copy_from_slice(&root);
    area.0
}

/// Tables one after the other.
struct Area(Vec<u8>);

impl Area {
    /// Appends a table and says where in the guest it is.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        let address = layout::ACPI_TABLES.raw_value() + self.0.len() as u64;
        table.to_aml_bytes(&mut self.0);
        address
    }
}

fn bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(
        signature,
        HEADER_BYTES,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table
}

/// Fixed description (§5.2.9): nothing but what §4.1 leaves of it.
fn fadt(dsdt: u64) -> FADTBuilder {
    let register = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // The power button is a device of the DSDT; a sleep button would be, too.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (HAS_I8042 | NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = register(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = register(layout::SLEEP_STATUS_PORT);
    fadt
}

/// Interrupt controllers (§5.2.12). Local APIC ids are below 255, so no processor needs an x2APIC entry.
fn madt(vcpus: u8) -> Sdt {
    let mut body = layout::LOCAL_APIC.to_le_bytes().to_vec();
    // Flags: no pair of 8259 that the kernel must mask.
    body.extend(0_u32.to_le_bytes());
    for id in 0..vcpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(layout::IO_APIC_ID, layout::IO_APIC, 0).to_aml_bytes(&mut body);
    body.extend(LINT1_IS_NMI);
    table(*b"APIC", MADT_REVISION, &body)
}

/// The device tree (§5.2.11.1, chapter 6) and the sleep state.
fn dsdt(devices: &[MmioPlace]) -> Sdt {
    let mut board = Vec::new();
    for (index, place) in (0_u32..).zip(devices) {
        add_virtio_mmio(&mut board, index, *place);
    }
    add_serial_port(&mut board);
    add_keyboard(&mut board);
    add_pvpanic(&mut board);
    add_power_button(&mut board);
    add_generation_id(&mut board);
    add_event_device(&mut board);
    let mut body = Scope::raw(Path::new("\\_SB_"), board);
    let off: &dyn Aml = &SLEEP_TYPE_OFF;
    let values = Package::new(vec![off, &0_u8, &0_u8, &0_u8]);
    Name::new(Path::new("\\_S5_"), &values).to_aml_bytes(&mut body);
    table(*b"DSDT", DSDT_REVISION, &body)
}

/// Appends a device with these objects to `board`.
fn add_device(board: &mut Vec<u8>, name: &str, objects: Vec<&dyn Aml>) {
    Device::new(Path::new(name), objects).to_aml_bytes(board);
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

/// A line that only this device has: edge, active high.
fn interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}

/// `LNRO0005`: what Linux's drivers/virtio/virtio_mmio.c looks for.
fn add_virtio_mmio(board: &mut Vec<u8>, index: u32, place: MmioPlace) {
    let bytes = u32::try_from(layout::MMIO_BYTES).unwrap_or(u32::MAX);
    let registers = Memory32Fixed::new(true, place.address, bytes);
    let line = interrupt(place.gsi);
    let objects: Vec<&dyn Aml> = vec![&registers, &line];
    add_device(
        board,
        &format!("V{index:03}"),
        vec![
            &name("_HID", &"LNRO0005"),
            &name("_UID", &index),
            &name("_CCA", &1_u8),
            &name("_CRS", &ResourceTemplate::new(objects)),
        ],
    );
}

/// COM1. A kernel that believes the FADT takes interrupt lines from here alone.
fn add_serial_port(board: &mut Vec<u8>) {
    let count = u8::try_from(layout::SERIAL_PORTS).unwrap_or(u8::MAX);
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, count);
    let line = interrupt(layout::SERIAL_GSI);
    let objects: Vec<&dyn Aml> = vec![&ports, &line];
    add_device(
        board,
        "COM1",
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &1_u8),
            &name("_DDN", &"COM1"),
            &name("_CRS", &ResourceTemplate::new(objects)),
        ],
    );
}

/// The keyboard controller, with a keyboard of 101 keys and no mouse.
fn add_keyboard(board: &mut Vec<u8>) {
    let data = IO::new(i8042::DATA_PORT, i8042::DATA_PORT, 1, 1);
    let command = IO::new(i8042::COMMAND_PORT, i8042::COMMAND_PORT, 1, 1);
    let line = interrupt(layout::KEYBOARD_GSI);
    let objects: Vec<&dyn Aml> = vec![&data, &command, &line];
    add_device(
        board,
        "KBD_",
        vec![
            &name("_HID", &EISAName::new("PNP0303")),
            &name("_CRS", &ResourceTemplate::new(objects)),
        ],
    );
}

/// `QEMU0001`: what Linux's drivers/misc/pvpanic looks for.
fn add_pvpanic(board: &mut Vec<u8>) {
    let port = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    let objects: Vec<&dyn Aml> = vec![&port];
    add_device(
        board,
        "PEVT",
        vec![
            &name("_HID", &"QEMU0001"),
            &name("_CRS", &ResourceTemplate::new(objects)),
        ],
    );
}

/// The power button (§4.8.3.2.2).
fn add_power_button(board: &mut Vec<u8>) {
    let id = EISAName::new("PNP0C0C");
    add_device(board, "PWRB", vec![&name("_HID", &id)]);
}

/// The VM Generation ID; `ADDR` has the low and the high half of its address. Linux looks for this `_HID`, others for
/// `_CID` and `_DDN`, the only names that Microsoft's description gives.
fn add_generation_id(board: &mut Vec<u8>) {
    let address = layout::GENERATION_ID.raw_value();
    let (low, high) = (address & 0xffff_ffff, address >> 32);
    add_device(
        board,
        "VMGI",
        vec![
            &name("_HID", &"VMGENCTR"),
            &name("_CID", &"VM_Gen_Counter"),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("ADDR", &Package::new(vec![&low, &high])),
        ],
    );
}

/// The Generic Event Device (§5.6.9). Its one line says that something has happened, and the register `EVTS` what.
fn add_event_device(board: &mut Vec<u8>) {
    let line = interrupt(layout::EVENT_GSI);
    let objects: Vec<&dyn Aml> = vec![&line];
    let register = OpRegion::new(
        Path::new("EVTR"),
        OpRegionSpace::SystemIO,
        &layout::EVENT_STATUS_PORT,
        &1_u8,
    );
    let field = Field::new(
        Path::new("EVTR"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let tell: &dyn Aml = &EventMethod;
    add_device(
        board,
        "GED_",
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &0_u8),
            &name("_CRS", &ResourceTemplate::new(objects)),
            &register,
            &field,
            tell,
        ],
    );
}

/// `_EVT`: reads the register, which is cleared by that, and notifies each device that something has happened to.
struct EventMethod;

impl Aml for EventMethod {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (events, status) = (Local(0), Path::new("EVTS"));
        let read = Store::new(&events, &status);
        let [generation, button] = ["\\_SB_.VMGI", "\\_SB_.PWRB"].map(Path::new);
        let notify_generation = Notify::new(&generation, &NOTIFY_EVENT);
        let notify_button = Notify::new(&button, &NOTIFY_EVENT);
        // The result is tested and not kept: a null target.
        let nowhere = 0_u8;
        let is_generation = And::new(&nowhere, &events, &event::GENERATION);
        let is_button = And::new(&nowhere, &events, &event::POWER_BUTTON);
        let on_change = If::new(&is_generation, vec![&notify_generation]);
        let on_press = If::new(&is_button, vec![&notify_button]);
        let body: Vec<&dyn Aml> = vec![&read, &on_change, &on_press];
        Method::new(Path::new("_EVT"), 1, true, body).to_aml_bytes(sink);
    }
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
