//! Images: header, table, checksums, and all sections of a snapshot. The first byte says how an image is made of the rest.

use lightv_devices::virtio::block::{Delta, Disk, OverlayOptions};
use lightv_vmm::config::MachineConfig;
use lightv_vmm::image::header::{ENTRY_BYTES, HEADER_BYTES, Header, MAGIC, SectionEntry, kind};
use lightv_vmm::image::read::Image;
use lightv_vmm::snapshot::saved::{SavedMachine, take_boot_files};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::file::InputFile;
use crate::script::{Input, bytes};

/// Names of sections; a number beyond is one that nobody knows.
pub(crate) const KINDS: [&str; 24] = [
    kind::MANIFEST,
    kind::KERNEL,
    kind::INITRD,
    kind::MEMORY,
    kind::DISK,
    kind::DISK_SUMS,
    kind::OVERLAY,
    kind::OVERLAY_SUMS,
    "overlay-map",
    "vm",
    "vcpu",
    "memory-map",
    "memory-file",
    "working-set",
    "serial",
    "virtio-mmio",
    "virtio-blk",
    "virtio-net",
    "virtio-rng",
    "virtio-console",
    "virtio-balloon",
    "virtio-vsock",
    "other",
    "x",
];

/// Ways from an input to an image.
mod way {
    /// As it is.
    pub(super) const AS_IT_IS: u8 = 0;
    /// As it is, but that checksums and length are right.
    pub(super) const REPAIRED: u8 = 1;
    // Any other: sections one after the other, of which a table is made.
}

/// The first byte says how an image is made of the rest.
pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let file = match kind % 3 {
        way::AS_IT_IS => rest.to_vec(),
        way::REPAIRED => repaired(rest.to_vec()),
        _ => assembled(rest),
    };
    let file = InputFile::new(&file);
    let Ok(mut image) = Image::open(&file.path()) else {
        return;
    };
    if let Ok(saved) = SavedMachine::decode(&mut image) {
        check(saved, file.bytes());
    }
    let mut image = Image::open(&file.path()).expect("it was just opened");
    let _ = take_boot_files(&mut image);
}

/// What was proved holds.
fn check(saved: SavedMachine, file_bytes: u64) {
    let in_image = saved.memory_file.is_none();
    for run in &saved.runs {
        assert!(run.bytes > 0 && run.address.checked_add(run.bytes).is_some());
        let end = run.file_offset.checked_add(run.bytes).expect("in a file");
        assert!(!in_image || end <= file_bytes);
    }
    for found in saved.disks {
        assert!(found.part.base + found.part.len_bytes <= file_bytes);
        if let Some(disk) = Disk::in_image(found.part) {
            // A chunk that has another checksum is an error, and nothing else.
            let _ = disk.read_at(&mut [0; 512], 0);
        }
    }
    for found in saved.overlays {
        let base = InputFile::new(&[0x42; 9 * 4096]);
        let disk = Disk::open(&base.path(), true).expect("it is a file");
        let options = OverlayOptions {
            delta: Delta::Memory(Some(found.saved)),
            bytes_max: None,
        };
        let _ = disk.with_overlay(options);
    }
    let _ = MachineConfig::prove(saved.manifest.config, 64 << 30);
}

/// The image with a right length and right checksums, as far as its table tells where sections are.
fn repaired(mut file: Vec<u8>) -> Vec<u8> {
    if file.len() < HEADER_BYTES {
        return file;
    }
    file[..8].copy_from_slice(&MAGIC);
    let length = file.len() as u64;
    file[16..24].copy_from_slice(&length.to_le_bytes());
    let word = |file: &[u8], at: usize| {
        let bytes = file.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        usize::try_from(u64::from_le_bytes(bytes.unwrap_or_default())).unwrap_or(usize::MAX)
    };
    let sections = usize::from(u16::from_le_bytes([file[12], file[13]]));
    let table = HEADER_BYTES..file.len().min(HEADER_BYTES + sections * ENTRY_BYTES);
    for entry in table.clone().step_by(ENTRY_BYTES) {
        let (start, bytes) = (word(&file, entry + 32), word(&file, entry + 40));
        let section = start
            .checked_add(bytes)
            .and_then(|end| file.get(start..end));
        if let (Some(section), true) = (section, entry + ENTRY_BYTES <= file.len()) {
            let checksum = xxh3_64(section).to_le_bytes();
            file[entry + 48..entry + 56].copy_from_slice(&checksum);
        }
    }
    let mut front = Xxh3::new();
    front.update(&file[..56]);
    front.update(&[0; 8]);
    front.update(&file[table]);
    file[56..64].copy_from_slice(&front.digest().to_le_bytes());
    file
}

/// Sections: kind, index, version, length in two bytes, and the bytes, of which those that repeat are short.
fn assembled(rest: &[u8]) -> Vec<u8> {
    let mut input = Input::new(rest);
    let mut sections = Vec::new();
    while !input.is_empty() {
        let Ok(section) = section(&mut input) else {
            break;
        };
        sections.push(section);
    }
    image_of(&sections)
}

/// An image of sections, placed as our own writer places them.
pub(crate) fn image_of(sections: &[(SectionEntry, Vec<u8>)]) -> Vec<u8> {
    let mut end = HEADER_BYTES + sections.len() * ENTRY_BYTES;
    let mut entries = Vec::new();
    let mut body = vec![0; end];
    for (entry, bytes) in sections {
        let alignment = match entry.kind.as_str() {
            kind::MEMORY | kind::DISK | kind::OVERLAY => 4096,
            _ => 8,
        };
        let offset = end.next_multiple_of(alignment);
        body.resize(offset, 0);
        body.extend_from_slice(bytes);
        end = body.len();
        entries.push(SectionEntry {
            offset: offset as u64,
            bytes: bytes.len() as u64,
            checksum: xxh3_64(bytes),
            ..entry.clone()
        });
    }
    let front = Header::encode(end as u64, &entries);
    body[..front.len()].copy_from_slice(&front);
    body
}

fn section(input: &mut Input<'_>) -> arbitrary::Result<(SectionEntry, Vec<u8>)> {
    let kind: u8 = input.arbitrary()?;
    let index: u8 = input.arbitrary()?;
    let version: u8 = input.arbitrary()?;
    let repeats = 1 + usize::from(index >> 4) * 64;
    let length = usize::from(input.arbitrary::<u16>()?);
    let body = if repeats > 1 {
        bytes(input)?.repeat(repeats)
    } else {
        input.bytes(length.min(input.len()))?.to_vec()
    };
    let entry = SectionEntry {
        kind: KINDS[usize::from(kind) % KINDS.len()].to_owned(),
        index: (index & 0xf).into(),
        version: version.into(),
        offset: 0,
        bytes: 0,
        checksum: 0,
    };
    Ok((entry, body))
}
