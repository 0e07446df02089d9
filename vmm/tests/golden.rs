//! The bytes of every saved form of this crate, as they were when the version was made.
//!
//! A golden file is never changed: a change of the form is a new version with a file of its own. Write a new one with
//! `cargo xtask golden`.

use std::fmt::Debug;
use std::path::PathBuf;

use lightv_devices::state::Section;
use lightv_vmm::image::header::{Header, SectionEntry};
use lightv_vmm::image::manifest::{MemoryMapV1, MemoryRunV1};
use lightv_vmm::snapshot::irqchip_state::VmStateV1;
use lightv_vmm::snapshot::memory_file::{MemoryFileV1, PageSampleV1};
use lightv_vmm::snapshot::vcpu_state::VcpuStateV1;
use lightv_vmm::snapshot::working_set::WorkingSetV1;

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn check_bytes(name: &str, found: &[u8]) -> Vec<u8> {
    let path = golden_path(name);
    if std::env::var_os("LIGHTV_UPDATE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        found, golden,
        "{name}: the saved form has changed; make a new version"
    );
    golden
}

fn check<T: Section + PartialEq + Debug>(state: &T) {
    let bytes = postcard::to_stdvec(state).unwrap();
    let golden = check_bytes(&format!("{}-v{}.bin", T::KIND, T::VERSION), &bytes);
    let decoded: T = postcard::from_bytes(&golden).unwrap();
    assert_eq!(&decoded, state);
}

#[test]
fn golden_vcpu() {
    check(&VcpuStateV1 {
        tsc_khz: 2_600_000,
        cpuid: vec![1; 40],
        regs: vec![2; 3],
        sregs: vec![3; 4],
        xsave: vec![4; 5],
        xcrs: vec![],
        lapic: vec![5; 200],
        events: vec![6],
        mp_state: vec![7; 4],
        debug_regs: vec![],
        msrs: vec![(0x10, 1 << 40), (0x6e0, 0)],
    });
}

#[test]
fn golden_vm() {
    let irqchips = [vec![1; 2], vec![2; 3], vec![3; 130]];
    check(&VmStateV1 {
        irqchips,
        clock_ns: 123_456_789_012,
    });
}

#[test]
fn golden_memory_map() {
    let runs = vec![
        MemoryRunV1 {
            address: 0,
            bytes: 4096,
        },
        MemoryRunV1 {
            address: 0x1_0000_0000,
            bytes: 8 << 20,
        },
    ];
    check(&MemoryMapV1 { runs });
}

#[test]
fn golden_working_set() {
    check(&WorkingSetV1 {
        written: vec![MemoryRunV1 {
            address: 0x10_0000,
            bytes: 12_288,
        }],
    });
}

#[test]
fn golden_memory_file() {
    check(&MemoryFileV1 {
        bytes: 128 << 20,
        saved_unix_ns: 1_800_000_000_000_000_000,
        samples: vec![PageSampleV1 {
            offset: 0x10_0000,
            checksum: 0x0123_4567_89ab_cdef,
        }],
    });
}

#[test]
fn golden_header() {
    let entry = |kind: &str, index, offset, bytes| SectionEntry {
        kind: kind.to_owned(),
        index,
        version: 1,
        offset,
        bytes,
        checksum: 0x0123_4567_89ab_cdef,
    };
    let entries = [
        entry("manifest", 0, 192, 100),
        entry("memory", 3, 4096, 8192),
    ];
    let golden = check_bytes("header-v1.bin", &Header::encode(12_288, &entries));
    let header = Header::decode(&golden, 12_288).unwrap();
    assert_eq!(header.decode_table(&golden).unwrap(), entries);
}
