//! The first inputs of each target, from which the fuzzer makes others: one for each thing that a target can do.

use lightv_devices::state::{EntropyStateV1, Section};
use lightv_vmm::image::header::{SectionEntry, kind};
use lightv_vmm::image::manifest::{MemoryMapV1, MemoryRunV1};
use lightv_vmm::snapshot::irqchip_state::VmStateV1;
use lightv_vmm::snapshot::vcpu_state::VcpuStateV1;
use lightv_vmm::snapshot::working_set::WorkingSetV1;
use serde_json::json;

use crate::image::{KINDS, image_of};

/// Target, name, bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// Bytes of a stored state of a device.
macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../../devices/tests/golden/", $name, ".bin")).as_slice()
    };
}

/// All seeds.
#[must_use]
pub fn all() -> Vec<Seed> {
    let devices = [disks(), cards(), sockets(), others()].concat();
    [devices, registers(), service(), texts(), files(), states()].concat()
}

/// Steps of `script`, which takes the first byte modulo 20.
mod step {
    pub(super) const CHAIN: u8 = 0;
    pub(super) const REQUEST: u8 = 4;
    pub(super) const KICK: u8 = 8;
    pub(super) const DESCRIPTOR: u8 = 9;
    pub(super) const OFFER: u8 = 10;
    pub(super) const JUMP: u8 = 11;
    pub(super) const MEMORY: u8 = 12;
    pub(super) const ACCESS: u8 = 13;
    pub(super) const BACKEND: u8 = 14;
    pub(super) const HOST: u8 = 15;
    pub(super) const FEATURES: u8 = 17;
    pub(super) const SAVE: u8 = 18;
    pub(super) const RESET: u8 = 19;
}

/// What any device is asked: chains in the table and in one of their own, a loop, a jump, a save, a reset.
fn hostile() -> Vec<u8> {
    let chain = |flags| {
        [
            &[step::CHAIN, 1, flags, 0, 4][..],
            b"text",
            &[1, 0, 2, 3, 5, 0, 16],
        ]
        .concat()
    };
    let lo = [step::DESCRIPTOR, 0, 0, 0, 0, 16, 1, 0, step::OFFER, 0, 0];
    [
        chain(0x20).as_slice(),
        &chain(0x21),
        &lo,
        &[step::KICK, 0, step::BACKEND, step::SAVE],
        &[step::MEMORY, 2, 0, 2, 0, 0, step::ACCESS, 3, 0x14, 1],
        &[step::JUMP, 0, 0xff, 0x7f, step::KICK, 0, step::RESET],
        &[step::FEATURES, 0xff, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat()
}

/// A request of the device, and what its host's side does.
fn request(bytes: &[u8]) -> Vec<u8> {
    [&[step::REQUEST], bytes].concat()
}

fn host(bytes: &[u8]) -> Vec<u8> {
    [&[step::HOST], bytes].concat()
}

fn disks() -> Vec<Seed> {
    let reads = request(&[0, 2, 1, 4, 0]);
    let writes = request(&[2, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    let discards = request(&[
        6, 0, 1, 16, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    let others = [request(&[4, 0, 0, 0]), request(&[5, 0, 1, 1, 0])].concat();
    let script = [reads, writes, discards, others, hostile()].concat();
    let kinds = [
        ("plain", 0_u8),
        ("read-only", 1),
        ("overlay", 2),
        ("overlay-discard", 6),
        ("queues", 8),
        ("async", 16),
        ("async-discard", 20),
    ];
    let disk = |(name, kind)| ("block", name, [&[kind], script.as_slice()].concat());
    kinds.into_iter().map(disk).collect()
}

fn cards() -> Vec<Seed> {
    let frame = [
        request(&[1, 0, 8]),
        request(&[0x40, 14, 6, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
        request(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]),
    ]
    .concat();
    let frames = [&[6_u8][..], b"frames"].concat();
    let tap = [&[0][..], &frame, &host(&frames), &hostile()].concat();
    let frames = [&[0], frames.as_slice()].concat();
    let stream = [&[1][..], &frame, &host(&frames), &hostile()].concat();
    let command = |data: &[u8; 4]| request(&[&[0x30, 4], data.as_slice()].concat());
    let pairs = [
        &[2][..],
        &command(&[4, 0, 2, 0]),
        &frame,
        &request(&[5, 0, 8]),
        &request(&[4, 1, 7]),
        &command(&[4, 0, 9, 0]),
        &command(&[1, 0, 1, 0]),
        &hostile(),
    ]
    .concat();
    vec![
        ("net", "tap", tap),
        ("net", "stream", stream),
        ("net", "pairs", pairs),
    ]
}

fn sockets() -> Vec<Seed> {
    // Bits of the byte after the data say what of a header is odd; then port, operation and flags.
    let packet = |op: u8, data: &[u8]| {
        let length = u8::try_from(data.len()).unwrap_or(0);
        request(&[&[0, length], data, &[0, 0, op, 0]].concat())
    };
    let talk = [
        request(&[3, 0, 16]),
        request(&[3, 0, 16]),
        packet(1, &[]),
        host(&[0]),
        packet(5, b"from the guest"),
        host(&[3]),
        host(&[&[2, 4][..], b"host"].concat()),
        packet(6, &[]),
        packet(7, &[]),
        packet(4, &[]),
        packet(3, &[]),
        host(&[&[1, 13][..], b"CONNECT 5000\n"].concat()),
        packet(2, &[]),
        host(&[5]),
        hostile(),
    ];
    let odd = request(&[0, 0, 0x7f, 9, 8, 7, 6, 5, 4, 3, 0, 5, 3]);
    vec![
        ("vsock", "talk", talk.concat()),
        ("vsock", "odd", [odd, hostile()].concat()),
    ]
}

fn others() -> Vec<Seed> {
    let pages = [
        request(&[0, 3, 1, 2, 0xff, 0, 0, 0, 0, 0, 0, 0, 1]),
        request(&[1, 2, 1, 2]),
        request(&[2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        request(&[3, 4, 1, 0, 0, 0]),
        request(&[4, 200, 16]),
        host(&[5]),
        hostile(),
    ];
    let words = [request(&[64]), request(&[0xfd, 0, 0xff]), hostile()];
    let messages = [
        request(&[1, 2, 64]),
        request(&[0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0, 1]),
        request(&[0, 4, 3, 1]),
        request(&[0, 4, 6, 1]),
        request(&[3, 5, 4, b't', b'e', b'x', b't']),
        hostile(),
    ];
    vec![
        ("balloon", "pages", pages.concat()),
        ("entropy", "bytes", words.concat()),
        ("console", "messages", messages.concat()),
        ("console", "keys", [host(b"\x04keys"), hostile()].concat()),
    ]
}

fn registers() -> Vec<Seed> {
    let steps = [
        &[0, 1, 0, 1, 1, 6, 15][..],
        &[2, 0, 3, 0, 4, 5, 2, 1, 7, 3, 0x14, 0],
        &[7, 0, 0, 7, 3, 0x1c, 4, 7, 0x83, 0x70, 0, 0, 7, 6, 0x40, 8],
        &[7, 5, 0x40, 4, 1, 2, 3, 4, 6, 0, 1, 0],
    ]
    .concat();
    let names = [
        "entropy",
        "block",
        "net",
        "stream",
        "balloon",
        "net-pairs",
        "console",
        "vsock",
    ];
    let registers = (0_u8..)
        .zip(names)
        .map(|(number, name)| ("mmio", name, [&[number][..], &steps].concat()));
    let ports = [
        &[1, 4, 0x10, 1, 0, b'x', 0, 0, 1, 4, 0, 2, 4][..],
        b"keys\x03\x00\x05",
        &[5, 0x64, 0xfe, 5, 0x64, 0x20, 4, 0x60, 6, 4, 0x64, 7, 1],
        &[8, 0xfd, 0x10, 8, 8, 0, 16, 0, 0, 0, 0, 5, 0],
        &[8, 0xfd, 0, 8, 4, 1, 0, 0, 0],
    ];
    registers
        .chain([("ports", "all", ports.concat())])
        .collect()
}

fn service() -> Vec<Seed> {
    let say = |text: &[u8]| {
        let length = u8::try_from(text.len()).unwrap_or(0);
        [&[1, length], text].concat()
    };
    let get = say(b"GET /a/b HTTP/1.1\r\nAccept: application/json\r\n\r\n");
    let token = say(
        b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n\r\n",
    );
    let long = say(b"GET /long HTTP/1.0\r\n\r\n");
    let parts = [say(b"GET / HT"), say(b"TP/1.1\r\n"), say(b"\r\n")].concat();
    let odd = [
        &[7, 3, 2, 0x12, 0, 32, 2, b'h', b'i'][..],
        &[
            8, 0, 6, 2, 1, 2, 8, 1, 20, 3, 0, 40, 1, 8, 6, 0, 4, 1, 2, 3, 4,
        ],
        &[5, 6, 9, 1],
    ]
    .concat();
    let all = |kind: u8, requests: &[u8]| [&[kind, 0][..], requests, &odd].concat();
    vec![
        ("mmds", "get", all(0, &get)),
        ("mmds", "token", all(1, &token)),
        ("mmds", "long", all(2, &long)),
        ("mmds", "parts", all(0, &parts)),
    ]
}

fn texts() -> Vec<Seed> {
    let http = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    let requests = include_str!("../texts/requests");
    let mut seeds: Vec<Seed> = vec![
        (
            "http",
            "get",
            http(0, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ),
        (
            "http",
            "put",
            http(
                3,
                "PUT /actions HTTP/1.1\r\nContent-Length: 31\r\n\r\n{\"action_type\":\"FlushMetrics\"}\n",
            ),
        ),
        (
            "http",
            "chunked",
            http(
                1,
                "PATCH /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n\
                 12\r\n{\"state\":\"Paused\"}\r\n0\r\n\r\nGET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            ),
        ),
        (
            "http",
            "events",
            http(0, "GET /events HTTP/1.1\r\nLast-Event-ID: 0\r\n\r\n"),
        ),
        ("api", "requests", [b"\0", requests.as_bytes()].concat()),
        ("api", "all", [b"\x01", requests.as_bytes()].concat()),
    ];
    for (name, text) in [
        ("full", include_str!("../texts/config-full")),
        ("small", include_str!("../texts/config-small")),
        ("cpu", include_str!("../texts/config-cpu")),
    ] {
        seeds.push(("config", name, text.as_bytes().to_vec()));
    }
    seeds
}

fn entry(kind: &str, index: u32) -> SectionEntry {
    SectionEntry {
        kind: kind.to_owned(),
        index,
        version: 1,
        offset: 0,
        bytes: 0,
        checksum: 0,
    }
}

fn encoded(state: &impl Section) -> Vec<u8> {
    postcard::to_stdvec(state).unwrap_or_default()
}

fn vcpu() -> VcpuStateV1 {
    VcpuStateV1 {
        tsc_khz: 2_600_000,
        cpuid: vec![1; 40],
        regs: vec![2; 3],
        sregs: vec![],
        xsave: vec![],
        xcrs: vec![],
        lapic: vec![],
        events: vec![6],
        mp_state: vec![7; 4],
        debug_regs: vec![],
        msrs: vec![(0x10, 1 << 40)],
    }
}

/// The sections of a small snapshot: a machine of 16 MiB with a drive that is in the image.
fn sections() -> Vec<(SectionEntry, Vec<u8>)> {
    let manifest = json!({
        "written_by": "t", "created_unix_s": 0, "restores": 0, "ram_bytes": 16 << 20, "disk_bytes": [512],
        "config": {
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 16},
            "drives": [{"drive_id": "d", "path_on_host": "p", "is_root_device": false, "is_read_only": true,
                "in_image": true}],
            "entropy": {},
        },
    });
    let page = MemoryRunV1 {
        address: 0,
        bytes: 4096,
    };
    let vm = VmStateV1 {
        irqchips: Default::default(),
        clock_ns: 1,
    };
    let map = MemoryMapV1 { runs: vec![page] };
    let written = WorkingSetV1 {
        written: vec![page],
    };
    let sums = xxhash_rust::xxh3::xxh3_64(&[7; 512]).to_le_bytes().to_vec();
    vec![
        (entry(kind::MANIFEST, 0), manifest.to_string().into_bytes()),
        (entry("vm", 0), encoded(&vm)),
        (entry("vcpu", 0), encoded(&vcpu())),
        (
            entry("virtio-mmio", 0),
            golden!("virtio-mmio-v1-fresh").to_vec(),
        ),
        (entry("virtio-rng", 0), encoded(&EntropyStateV1::default())),
        (entry("serial", 0), golden!("serial-v1-input").to_vec()),
        (entry("memory-map", 0), encoded(&map)),
        (entry("working-set", 0), encoded(&written)),
        (entry(kind::DISK_SUMS, 0), sums),
        (entry(kind::DISK, 0), vec![7; 512]),
        (entry(kind::MEMORY, 0), vec![9; 4096]),
    ]
}

/// The same as `image` reads sections: kind, index, version, length, bytes; long ones that repeat by one byte.
fn listed() -> Vec<u8> {
    let mut bytes = vec![2];
    for (entry, body) in sections() {
        let kind = KINDS.iter().position(|kind| *kind == entry.kind);
        let kind = u8::try_from(kind.unwrap_or(0)).unwrap_or(0);
        if body.len() == 4096 {
            bytes.extend_from_slice(&[kind, 0x30, 1, 0, 0, 1]);
            // 1 + 3 * 64 times: the map says otherwise, which is to be found.
            bytes.push(9);
        } else {
            let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_le_bytes();
            bytes.extend_from_slice(&[kind, 0, 1, length[0], length[1]]);
            bytes.extend_from_slice(&body);
        }
    }
    bytes
}

/// A kernel of one segment, which is `hlt`.
fn elf() -> Vec<u8> {
    let mut elf = vec![0_u8; 0x78];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2;
    elf[18] = 62;
    elf[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    elf[32] = 64;
    elf[52] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = 1;
    elf[72..80].copy_from_slice(&0x78_u64.to_le_bytes());
    elf[88..96].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    elf[96..104].copy_from_slice(&16_u64.to_le_bytes());
    elf[104..112].copy_from_slice(&16_u64.to_le_bytes());
    elf.extend([0xf4; 16]);
    elf
}

/// The same with a PVH note (XEN_ELFNOTE_PHYS32_ENTRY).
fn elf_with_note() -> Vec<u8> {
    let mut elf = elf();
    let segment = elf.split_off(0x78);
    elf[56] = 2;
    elf[72..80].copy_from_slice(&0x100_u64.to_le_bytes());
    let mut note = vec![0; 56];
    note[0] = 4;
    note[8..16].copy_from_slice(&0xb0_u64.to_le_bytes());
    note[32..40].copy_from_slice(&20_u64.to_le_bytes());
    note[40..48].copy_from_slice(&20_u64.to_le_bytes());
    note[48] = 4;
    elf.extend(note);
    let words = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
    elf.extend(words);
    elf.extend(b"Xen\0");
    elf.extend(0x10_0000_u32.to_le_bytes());
    elf.resize(0x100, 0);
    elf.extend(segment);
    elf
}

/// A bzImage of one sector of setup (Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut image = vec![0_u8; 0x400];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x236] = 1;
    image[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1000_u32.to_le_bytes());
    image.extend([0xf4; 0x300]);
    image
}

fn tar(is_old: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let kinds = [
        (tar::EntryType::Directory, "etc/", ""),
        (tar::EntryType::Symlink, "lib", "usr/lib"),
        (tar::EntryType::Link, "hard", "lib/a"),
        (tar::EntryType::Char, "dev/null", ""),
        (tar::EntryType::Fifo, "lib/.wh.fifo", ""),
        (tar::EntryType::Regular, "lib/a", ""),
    ];
    for (kind, path, link) in kinds {
        let mut header = if is_old {
            tar::Header::new_gnu()
        } else {
            tar::Header::new_ustar()
        };
        let content: &[u8] = if kind.is_file() { b"content" } else { b"" };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let _ = header.set_device_major(1);
        let _ = header.set_device_minor(3);
        let added = match link {
            "" => builder.append_data(&mut header, path, content),
            link => builder.append_link(&mut header, path, link),
        };
        added.expect("a short name");
    }
    let pax = [
        ("path", b"other/name".as_slice()),
        ("SCHILY.xattr.user.x", b"y"),
    ];
    builder.append_pax_extensions(pax).expect("in memory");
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    builder
        .append_data(&mut header, "short", std::io::empty())
        .expect("in memory");
    builder.into_inner().expect("in memory")
}

fn files() -> Vec<Seed> {
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let image = image_of(&sections());
    let layer: Vec<u8> = tar(false).into_iter().take(7 * 512).collect();
    let program =
        br#"{"Entrypoint":["/a"],"Cmd":["b"],"Env":["A=b"],"WorkingDir":"/etc","User":"1:2"}"#;
    let length = u8::try_from(program.len()).unwrap_or(0);
    let layers = [&[length], program.as_slice(), &[7], &layer, &[7], &layer].concat();
    let change = |at: u16, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).unwrap_or(0);
        [&at.to_le_bytes()[..], &[length], bytes].concat()
    };
    vec![
        ("kernel", "elf", with(0, &elf())),
        ("kernel", "elf-pvh", with(2, &elf_with_note())),
        ("kernel", "bzimage", with(1, &bzimage())),
        ("image", "as-it-is", with(0, &image)),
        ("image", "repaired", with(1, &image)),
        ("image", "listed", listed()),
        ("rootfs", "tar", with(0, &tar(false))),
        ("rootfs", "tar-gnu", with(1, &tar(true))),
        ("rootfs", "oci", with(2, &layers)),
        ("rootfs", "docker", with(3, &layers)),
        ("overlay", "whole", vec![0]),
        ("overlay", "cut-off", vec![3]),
        ("overlay", "map", with(0x20, &change(4096, &[0xff; 8]))),
        ("overlay", "live-map", with(0xa0, &change(8192, &[0x55; 4]))),
        ("overlay", "header", with(0x60, &change(16, &[0; 8]))),
    ]
}

fn states() -> Vec<Seed> {
    let pair = |kind: u8, state: &[u8], transport: &[u8]| {
        let piece = |bytes: &[u8]| {
            let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
            [&[length], &bytes[..usize::from(length).min(bytes.len())]].concat()
        };
        [
            &[kind][..],
            &piece(state),
            &piece(transport),
            &piece(&[0; 8]),
        ]
        .concat()
    };
    let fresh = golden!("virtio-mmio-v1-fresh");
    let running = golden!("virtio-mmio-v1-running");
    vec![
        (
            "state",
            "block",
            pair(0, golden!("virtio-blk-v1-writeback"), fresh),
        ),
        (
            "state",
            "net",
            pair(1, golden!("virtio-net-v2-pairs"), running),
        ),
        (
            "state",
            "entropy",
            pair(2, golden!("virtio-rng-v1-only"), fresh),
        ),
        (
            "state",
            "console",
            pair(3, golden!("virtio-console-v1-open"), fresh),
        ),
        (
            "state",
            "balloon",
            pair(4, golden!("virtio-balloon-v1-told"), fresh),
        ),
        (
            "state",
            "vsock",
            pair(5, golden!("virtio-vsock-v1-connected"), fresh),
        ),
        (
            "state",
            "serial",
            [&[6], golden!("serial-v1-input")].concat(),
        ),
        (
            "state",
            "vcpu",
            [&[8], encoded(&vcpu()).as_slice()].concat(),
        ),
    ]
}
