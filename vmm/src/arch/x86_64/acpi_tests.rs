//! The tables are read back by a reader of their own, which knows as much of AML (ACPI 6.5 chapter 20) as they use.

use std::collections::BTreeMap;

use super::*;

fn facts(vcpus: u8, devices: u32) -> BoardFacts {
    let place = |n| MmioPlace {
        address: u32::try_from(layout::mmio_address(u64::from(n))).unwrap(),
        gsi: layout::DEVICE_GSIS.start() + n,
    };
    BoardFacts {
        vcpus,
        devices: (0..devices).map(place).collect(),
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// All tables of an area, found as a kernel finds them: root pointer, XSDT, what it names, and the FADT's DSDT.
struct Found<'a> {
    area: &'a [u8],
    tables: BTreeMap<String, (u64, &'a [u8])>,
}

impl<'a> Found<'a> {
    fn read(area: &'a [u8]) -> Self {
        let mut found = Self {
            area,
            tables: BTreeMap::new(),
        };
        let root = &area[..36];
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(root)), (0, 0));
        assert_eq!((root[15], u32_at(root, 20)), (2, 36), "revision, length");
        let xsdt = found.add(u64_at(root, 24));
        for entry in xsdt[36..].chunks(8) {
            found.add(u64_at(entry, 0));
        }
        let fadt = found.table("FACP");
        found.add(u64_at(fadt, 140));
        found
    }

    fn add(&mut self, address: u64) -> &'a [u8] {
        assert_eq!(address % 16, 0);
        let start = usize::try_from(address - layout::ACPI_TABLES.0).unwrap();
        let length = usize::try_from(u32_at(self.area, start + 4)).unwrap();
        let table = &self.area[start..start + length];
        let signature = String::from_utf8(table[..4].to_vec()).unwrap();
        assert_eq!(sum(table), 0, "{signature}");
        assert_eq!(
            (&table[10..16], &table[16..24]),
            (&OEM_ID[..], &OEM_TABLE_ID[..])
        );
        assert!(self.tables.insert(signature, (address, table)).is_none());
        table
    }

    fn table(&self, signature: &str) -> &'a [u8] {
        self.tables[signature].1
    }
}

/// A namespace: objects by their paths, as the bytes that define their values.
type Namespace = BTreeMap<String, Vec<u8>>;

/// Reads a list of terms (§20.2.5) under `path`.
fn read_terms(mut aml: &[u8], path: &str, into: &mut Namespace) {
    while let Some(opcode) = aml.first() {
        let (names_scope, rest) = match (opcode, aml.get(1)) {
            (0x08, _) => {
                let (name, value) = read_name(&aml[1..]);
                let (value, after) = value.split_at(data_bytes(value));
                let old = into.insert(format!("{path}{name}"), value.to_vec());
                assert_eq!(old, None, "{path}{name} twice");
                aml = after;
                continue;
            }
            // A region, and a field of one entry (§20.2.5.2), which is known by its entry's name.
            (0x5b, Some(0x80)) => {
                let (name, rest) = read_name(&aml[2..]);
                let length_at = 1 + data_bytes(&rest[1..]);
                let (value, after) = rest.split_at(length_at + data_bytes(&rest[length_at..]));
                into.insert(format!("{path}{name}"), value.to_vec());
                aml = after;
                continue;
            }
            (0x5b, Some(0x81)) => {
                let (package, after) = read_package(&aml[2..]);
                let (_region, rest) = read_name(package);
                let (name, bits) = read_name(&rest[1..]);
                into.insert(format!("{path}{name}"), [&rest[..1], bits].concat());
                aml = after;
                continue;
            }
            (0x10, _) => (true, &aml[1..]),
            (0x14, _) => (false, &aml[1..]),
            (0x5b, Some(0x82)) => (true, &aml[2..]),
            _ => panic!("term {aml:x?}"),
        };
        let (package, after) = read_package(rest);
        let (name, body) = read_name(package);
        if names_scope {
            read_terms(body, &format!("{path}{name}."), into);
        } else {
            into.insert(format!("{path}{name}"), body.to_vec());
        }
        aml = after;
    }
}

/// A package length (§20.2.4) and what it spans.
fn read_package(aml: &[u8]) -> (&[u8], &[u8]) {
    let more = usize::from(aml[0] >> 6);
    let mut length = usize::from(aml[0] & if more == 0 { 0x3f } else { 0x0f });
    for n in 0..more {
        length |= usize::from(aml[1 + n]) << (4 + 8 * n);
    }
    (&aml[1 + more..length], &aml[length..])
}

/// A name of one segment (§20.2.2), from the root or not.
fn read_name(aml: &[u8]) -> (&str, &[u8]) {
    let aml = aml.strip_prefix(b"\\").unwrap_or(aml);
    let (name, rest) = aml.split_at(4);
    (std::str::from_utf8(name).unwrap(), rest)
}

/// Length of a data object (§20.2.3).
fn data_bytes(aml: &[u8]) -> usize {
    match aml[0] {
        0x00 | 0x01 => 1,
        0x0a => 2,
        0x0b => 3,
        0x0c => 5,
        0x0e => 9,
        0x0d => 2 + aml[1..].iter().position(|byte| *byte == 0).unwrap(),
        0x11 | 0x12 => aml.len() - read_package(&aml[1..]).1.len(),
        _ => panic!("data {aml:x?}"),
    }
}

fn integer(aml: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let digits = if aml[0] <= 1 {
        aml
    } else {
        &aml[1..data_bytes(aml)]
    };
    bytes[..digits.len()].copy_from_slice(digits);
    u64::from_le_bytes(bytes)
}

fn string(aml: &[u8]) -> &str {
    assert_eq!(aml[0], 0x0d);
    std::str::from_utf8(&aml[1..aml.len() - 1]).unwrap()
}

/// The descriptors of a resource template (§6.4) without its end tag.
fn resources(aml: &[u8]) -> Vec<&[u8]> {
    assert_eq!(aml[0], 0x11);
    let (package, _) = read_package(&aml[1..]);
    let mut rest = &package[data_bytes(package)..];
    assert_eq!(integer(package), rest.len() as u64, "the buffer's length");
    let mut found = Vec::new();
    while rest[0] & 0xf8 != 0x78 {
        let large = rest[0] & 0x80 != 0;
        let bytes = if large {
            3 + usize::from(rest[1])
        } else {
            1 + usize::from(rest[0] & 7)
        };
        let (descriptor, after) = rest.split_at(bytes);
        found.push(descriptor);
        rest = after;
    }
    assert_eq!(rest, [0x79, 0], "end tag, no checksum");
    found
}

/// An interrupt descriptor (§6.4.3.6): consumer, edge, active high, exclusive; one line.
fn line(gsi: u32) -> Vec<u8> {
    let mut descriptor = vec![0x89, 6, 0, 0b0011, 1];
    descriptor.extend(gsi.to_le_bytes());
    descriptor
}

fn namespace(facts: &BoardFacts) -> Namespace {
    let area = build(facts);
    let mut namespace = Namespace::new();
    read_terms(&Found::read(&area).table("DSDT")[36..], "", &mut namespace);
    namespace
}

#[test]
fn a_kernel_finds_four_tables_that_sum_up_to_zero_and_do_not_overlap() {
    for vcpus in [1, 2, 3, 31, 32] {
        for devices in [0, 1, 19] {
            let area = build(&facts(vcpus, devices));
            let found = Found::read(&area);
            let names: Vec<_> = found.tables.keys().map(String::as_str).collect();
            assert_eq!(names, ["APIC", "DSDT", "FACP", "XSDT"]);
            let mut stretches = vec![(layout::ACPI_TABLES.0, 36)];
            stretches.extend(
                found
                    .tables
                    .values()
                    .map(|(at, bytes)| (*at, bytes.len() as u64)),
            );
            stretches.sort_unstable();
            for pair in stretches.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{stretches:x?}");
            }
        }
    }
}

#[test]
fn the_fadt_promises_two_registers_and_no_pc() {
    let area = build(&facts(1, 1));
    let fadt = Found::read(&area).table("FACP");
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let flags = u32_at(fadt, 112);
    assert_eq!(flags, 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 20);
    let register = |port: u8, high: u8| [1, 8, 0, 1, port, high, 0, 0, 0, 0, 0, 0];
    assert_eq!(fadt[116..128], register(0x64, 0), "reset");
    assert_eq!(fadt[128], 0xfe);
    assert_eq!(fadt[244..256], register(0, 6), "sleep control");
    assert_eq!(fadt[256..268], register(1, 6), "sleep status");
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b10_0110);
}

#[test]
fn the_madt_has_every_local_apic_once_and_all_lines() {
    for vcpus in [1, 2, 3, 31, 32] {
        let area = build(&facts(vcpus, 19));
        let madt = Found::read(&area).table("APIC");
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 0));
        let (mut rest, mut ids, mut others) = (&madt[44..], Vec::new(), Vec::new());
        while let Some(length) = rest.get(1) {
            let (entry, after) = rest.split_at(usize::from(*length));
            match entry[0] {
                0 => {
                    assert_eq!((entry[2], u32_at(entry, 4)), (entry[3], 1), "enabled");
                    ids.push(entry[3]);
                }
                _ => others.push(entry.to_vec()),
            }
            rest = after;
        }
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        let io_apic = vec![1, 12, 32, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
        assert_eq!(others, [io_apic, vec![4, 6, 0xff, 0, 0, 1]]);
    }
}

#[test]
fn the_dsdt_has_every_device_with_its_page_and_line() {
    for devices in [0, 1, 2, 19] {
        let facts = facts(2, devices);
        let namespace = namespace(&facts);
        let ids = namespace.iter().filter(|(path, _)| path.ends_with("._HID"));
        assert_eq!(ids.count(), facts.devices.len() + 6);
        for (n, place) in facts.devices.iter().enumerate() {
            let object = |name: &str| namespace[&format!("_SB_.V{n:03}.{name}")].as_slice();
            assert_eq!(string(object("_HID")), "LNRO0005");
            assert_eq!(integer(object("_UID")), n as u64);
            let mut registers = vec![0x86, 9, 0, 1];
            registers.extend(place.address.to_le_bytes());
            registers.extend(0x1000_u32.to_le_bytes());
            assert_eq!(resources(object("_CRS")), [registers, line(place.gsi)]);
        }
    }
}

#[test]
fn the_boards_own_devices_are_found() {
    let namespace = namespace(&facts(1, 0));
    let object = |path: &str| namespace[path].as_slice();
    // "PNP0501" as three letters of 5 bits and four digits, big-endian.
    assert_eq!(object("_SB_.COM1._HID"), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
    let ports = vec![0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8];
    assert_eq!(resources(object("_SB_.COM1._CRS")), [ports, line(4)]);
    assert_eq!(string(object("_SB_.VMGI._HID")), "VMGENCTR");
    assert_eq!(string(object("_SB_.VMGI._CID")), "VM_Gen_Counter");
    // A package of two integers, the low half first.
    assert_eq!(
        object("_SB_.VMGI.ADDR"),
        [0x12, 8, 2, 0x0c, 0, 0xf0, 0x0f, 0, 0]
    );
    assert_eq!(string(object("_SB_.GED_._HID")), "ACPI0013");
    assert_eq!(resources(object("_SB_.GED_._CRS")), [line(3)]);
    // Of ports, from 0x602 on, one; in it one field of 8 bits, accessed by bytes, written as zeroes.
    assert_eq!(object("_SB_.GED_.EVTR"), [1, 0x0b, 0x02, 0x06, 1]);
    assert_eq!(object("_SB_.GED_.EVTS"), [0x41, 8]);
    // One argument, serialized: Local0 = EVTS; if (Local0 & 1) notify(\_SB.VMGI, 0x80); if (Local0 & 2) …
    let method = object("_SB_.GED_._EVT");
    let read = [&[9, 0x70], &b"EVTS"[..], &[0x60]].concat();
    let check = |bit: &[u8], device: &[u8]| {
        let test = [&[0x7b, 0x60], bit, &[0, 0x86]].concat();
        let body = [&test, &b"\\\x2e_SB_"[..], device, &[0x0a, 0x80]].concat();
        [&[0xa0, u8::try_from(body.len() + 1).unwrap()], &body[..]].concat()
    };
    let [on_change, on_press] = [check(&[1], b"VMGI"), check(&[0x0a, 2], b"PWRB")];
    assert_eq!(method, [read, on_change, on_press].concat());
    // "PNP0303", "PNP0C0C".
    assert_eq!(object("_SB_.KBD_._HID"), [0x0c, 0x41, 0xd0, 0x03, 0x03]);
    assert_eq!(object("_SB_.PWRB._HID"), [0x0c, 0x41, 0xd0, 0x0c, 0x0c]);
    let port = |low, high| vec![0x47, 1, low, high, low, high, 1, 1];
    let keyboard = resources(object("_SB_.KBD_._CRS"));
    assert_eq!(keyboard, [port(0x60, 0), port(0x64, 0), line(1)]);
    assert_eq!(string(object("_SB_.PEVT._HID")), "QEMU0001");
    assert_eq!(resources(object("_SB_.PEVT._CRS")), [port(5, 5)]);
}

#[test]
fn only_sleep_type_five_with_the_enable_bit_is_a_power_off() {
    let namespace = namespace(&facts(1, 0));
    let (package, _) = read_package(&namespace["_S5_"][1..]);
    assert_eq!(integer(&package[1..]), u64::from(SLEEP_TYPE_OFF));
    for value in 0..=u8::MAX {
        let expected = value & 0b0011_1100 == 0b0011_0100;
        assert_eq!(is_power_off(value), expected, "{value:#x}");
    }
}
