//! Images whose checksums are right and whose contents are not: what somebody could make on purpose.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::image::write::{ImageContents, Source, write_image};
use crate::memory::GuestRam;

const MIB: u64 = 1 << 20;

struct Parts {
    manifest: serde_json::Value,
    map: Vec<MemoryRunV1>,
    memory: Vec<MemoryRunV1>,
    working_set: Vec<MemoryRunV1>,
    vcpus: u32,
}

fn run(address: u64, bytes: u64) -> MemoryRunV1 {
    MemoryRunV1 { address, bytes }
}

fn sound() -> Parts {
    Parts {
        manifest: json!({"written_by": "t", "created_unix_s": 0, "restores": 0, "ram_bytes": 16 * MIB,
            "config": {"machine-config": {"vcpu_count": 1, "mem_size_mib": 16}}, "disk_bytes": []}),
        map: vec![run(0, PAGE), run(4 * PAGE, 2 * PAGE)],
        memory: vec![run(0, PAGE), run(4 * PAGE, 2 * PAGE)],
        working_set: vec![run(PAGE, PAGE)],
        vcpus: 1,
    }
}

fn vcpu() -> VcpuStateV1 {
    VcpuStateV1 {
        tsc_khz: 0,
        cpuid: vec![],
        regs: vec![],
        sregs: vec![],
        xsave: vec![],
        xcrs: vec![],
        lapic: vec![],
        events: vec![],
        mp_state: vec![],
        debug_regs: vec![],
        msrs: vec![],
    }
}

fn decode(parts: Parts) -> Result<SavedMachine, OpenImageError> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("x.lv");
    let mut contents = ImageContents::default();
    contents.add_bytes(kind::MANIFEST, parts.manifest.to_string().into_bytes());
    let vm = VmStateV1 {
        irqchips: Default::default(),
        clock_ns: 0,
    };
    contents.add(0, &vm).unwrap();
    (0..parts.vcpus).for_each(|index| contents.add(index, &vcpu()).unwrap());
    let irqfd = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let serial = lightv_devices::serial::Serial::new(irqfd, Box::new(std::io::sink()));
    contents.add(0, &serial.save()).unwrap();
    contents.add(0, &MemoryMapV1 { runs: parts.map }).unwrap();
    contents
        .add(
            0,
            &WorkingSetV1 {
                written: parts.working_set,
            },
        )
        .unwrap();
    contents.add_memory(parts.memory);
    let ram = GuestRam::allocate(16 * MIB).unwrap();
    write_image(&path, contents, Source::Ram(ram.mem())).unwrap();
    SavedMachine::decode(&mut Image::open(&path)?)
}

fn check(change: impl Fn(&mut Parts), words: &str) {
    let mut parts = sound();
    change(&mut parts);
    let text = decode(parts).expect_err(words).to_string();
    assert!(text.contains(words), "{words}: {text}");
}

#[test]
fn a_sound_image_is_taken() {
    let saved = decode(sound()).unwrap();
    assert_eq!(saved.runs.len(), 2);
    assert_eq!(saved.runs[1].file_offset, saved.runs[0].file_offset + PAGE);
    assert_eq!(saved.working_set.written, [run(PAGE, PAGE)]);
}

#[test]
fn memory_runs_that_cannot_be_are_refused() {
    let bad = [
        vec![run(1, PAGE)],
        vec![run(0, 1)],
        vec![run(0, 0)],
        vec![run(16 * MIB, PAGE)],
        vec![run(16 * MIB - PAGE, 2 * PAGE)],
        vec![run(u64::MAX - PAGE + 1, PAGE)],
        vec![run(0, 2 * PAGE), run(PAGE, PAGE)],
        vec![run(4 * PAGE, PAGE), run(0, PAGE)],
        (0..65).map(|n| run(2 * n * PAGE, PAGE)).collect(),
    ];
    for runs in bad {
        check(|parts| parts.map.clone_from(&runs), "memory-map[0]");
        let many = (0..300)
            .map(|n| run(2 * n * PAGE, PAGE))
            .collect::<Vec<_>>();
        let working_set = if runs.len() > 64 { many } else { runs };
        check(
            |parts| parts.working_set.clone_from(&working_set),
            "working-set[0]",
        );
    }
}

#[test]
fn memory_of_another_length_is_refused() {
    check(
        |parts| parts.map = vec![run(0, PAGE)],
        "does not fit section memory",
    );
    check(
        |parts| parts.memory = vec![run(0, PAGE)],
        "does not fit section memory",
    );
    check(|parts| parts.memory = vec![], "does not fit section memory");
}

#[test]
fn ram_that_contradicts_or_does_not_exist_is_refused() {
    for (ram_bytes, mib) in [
        (16 * MIB, 17),
        (u64::MAX, 16),
        (0, 0),
        (1 << 62, (1_u64 << 62) >> 20),
    ] {
        check(
            |parts| {
                parts.manifest["ram_bytes"] = json!(ram_bytes);
                parts.manifest["config"]["machine-config"]["mem_size_mib"] = json!(mib);
            },
            if ram_bytes == 0 {
                "memory-map[0]"
            } else {
                "manifest"
            },
        );
    }
}

#[test]
fn vcpus_that_are_missing_or_too_many_are_refused() {
    check(|parts| parts.vcpus = 0, "no snapshot");
    check(|parts| parts.vcpus = 2, "vcpu[1]");
    for count in [json!(33), json!(u64::MAX)] {
        let set = |parts: &mut Parts| {
            parts.manifest["config"]["machine-config"]["vcpu_count"] = count.clone()
        };
        check(set, "impossible number of vCPUs");
    }
}

#[test]
fn a_manifest_of_another_kind_is_refused() {
    check(|parts| parts.manifest["surprise"] = json!(1), "manifest");
    check(|parts| parts.manifest = json!([]), "manifest");
}
