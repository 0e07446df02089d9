use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};

use super::format::{Condition, HEADER_BYTES, Header};
use super::*;
use crate::memory::GuestMem;
use crate::test_support::guest_mem;
use crate::virtio::block::state::{OverlayMapV1, OverlayRunV1};
use crate::virtio::block::{Delta, Disk, DiskPart, OverlayOptions, chunk_sums};
use crate::virtio::chain::Segment;

const SECTOR: u64 = 512;
/// 20 blocks and a part of one.
const SECTORS: u64 = 20 * 8 + 3;
const DISK_BYTES: usize = 163 * 512;
const DATA_AT: u64 = 1 << 20;

/// A folder with a base, and guest memory to move data through.
struct Bench {
    folder: TempDir,
    mem: Arc<GuestMem>,
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("base"), base()).unwrap();
        Self {
            folder,
            mem: guest_mem(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn base(&self) -> Disk {
        Disk::open(&self.path("base"), true).unwrap()
    }

    fn in_memory(&self, saved: Option<SavedDelta>) -> Disk {
        self.with(Delta::Memory(saved), None).unwrap()
    }

    fn open(&self, access: DeltaAccess) -> Result<Disk, OverlayError> {
        let path = &self.path("delta");
        let patience = Duration::ZERO;
        let delta = Delta::File {
            path,
            access,
            patience,
        };
        self.with(delta, None)
    }

    fn with(&self, delta: Delta<'_>, bytes_max: Option<u64>) -> Result<Disk, OverlayError> {
        self.base()
            .with_overlay(OverlayOptions { delta, bytes_max })
    }

    fn in_file(&self) -> Disk {
        self.open(DeltaAccess::Create).unwrap()
    }

    fn refused(&self, access: DeltaAccess) -> String {
        self.open(access).unwrap_err().to_string()
    }

    /// In pieces whose ends lie in the middle of blocks.
    fn buffers(&self, bytes: usize) -> GuestBuffers {
        let mut buffers = GuestBuffers::new(Arc::clone(&self.mem));
        for at in (0..bytes).step_by(1000) {
            let length = (bytes - at).min(1000);
            let segment = Segment {
                address: DATA_AT + at as u64,
                bytes: u32::try_from(length).unwrap(),
            };
            buffers.push(segment).unwrap();
        }
        buffers
    }

    fn write(&self, disk: &Disk, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = GuestAddress(DATA_AT);
        self.mem.write_slice(data, at).unwrap();
        disk.write(&mut self.buffers(data.len()), offset)
    }

    fn read(&self, disk: &Disk, offset: u64, bytes: usize) -> Vec<u8> {
        let mut buffers = self.buffers(bytes);
        disk.read(&mut buffers, offset).unwrap();
        assert_eq!(buffers.bytes(), 0);
        let mut data = vec![0; bytes];
        let at = GuestAddress(DATA_AT);
        self.mem.read_slice(&mut data, at).unwrap();
        let mut by_host = vec![0; bytes];
        disk.read_at(&mut by_host, offset).unwrap();
        assert!(data == by_host);
        data
    }

    fn all(&self, disk: &Disk) -> Vec<u8> {
        self.read(disk, 0, DISK_BYTES)
    }

    /// Another disk with what `disk` would leave in an image.
    fn through_an_image(&self, disk: &Disk) -> Disk {
        let overlay = disk.overlay().unwrap();
        overlay.prove_saved().unwrap();
        let stored = overlay.stored(disk.len_bytes()).unwrap();
        let mut section = Vec::new();
        for piece in stored.pieces {
            let start = section.len();
            section.resize(start + usize::try_from(piece.bytes).unwrap(), 0);
            let part = &mut section[start..];
            piece.file.read_exact_at(part, piece.offset).unwrap();
        }
        let part = (!section.is_empty()).then(|| self.section(&section));
        let map = stored.map;
        self.in_memory(Some(SavedDelta { map, part }))
    }

    fn section(&self, bytes: &[u8]) -> DiskPart {
        let path = self.path("section");
        fs::write(&path, [&[7; 4096], bytes].concat()).unwrap();
        let file = File::open(&path).unwrap();
        // The next one is another file.
        fs::remove_file(&path).unwrap();
        let len_bytes = bytes.len() as u64;
        let read = |chunk: &mut [u8], at| file.read_exact_at(chunk, 4096 + at);
        let sums = chunk_sums(len_bytes, read).unwrap().into();
        DiskPart {
            file: Arc::new(file),
            base: 4096,
            len_bytes,
            sums,
        }
    }

    fn change_header(&self, change: impl FnOnce(&mut Header)) {
        let mut bytes = fs::read(self.path("delta")).unwrap();
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().unwrap();
        let mut header = Header::decode(header).unwrap();
        change(&mut header);
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        fs::write(self.path("delta"), bytes).unwrap();
    }

    /// The host goes down with all of its page cache on the disk, and comes up again.
    fn another_boot(&self) {
        self.change_header(|header| header.boot_id = [9; 16]);
    }
}

fn base() -> Vec<u8> {
    let byte = |at: usize| u8::try_from(at / 512 % 251).unwrap();
    (0..DISK_BYTES).map(byte).collect()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Write,
    Zero,
    Flush,
    /// The process ends and another goes on.
    Reopen,
    /// The host goes down.
    Crash,
    Reset,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    kind: Kind,
    sector: u64,
    sectors: u64,
    byte: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        6 => Just(Kind::Write),
        2 => Just(Kind::Zero),
        1 => Just(Kind::Flush),
        1 => Just(Kind::Reopen),
        1 => Just(Kind::Crash),
        1 => Just(Kind::Reset),
    ];
    let step = (kind, 0..SECTORS, 1..40_u64, any::<u8>());
    let step = step.prop_map(|(kind, sector, sectors, byte)| Step {
        kind,
        sector,
        sectors,
        byte,
    });
    proptest::collection::vec(step, 1..40)
}

/// The disk under test, and what it must hold.
struct Trial {
    bench: Bench,
    is_file: bool,
    disk: Disk,
    model: Vec<u8>,
    flushed: Vec<u8>,
}

impl Trial {
    fn new(is_file: bool) -> Self {
        let bench = Bench::new();
        let disk = if is_file {
            bench.in_file()
        } else {
            bench.in_memory(None)
        };
        Self {
            bench,
            is_file,
            disk,
            model: base(),
            flushed: base(),
        }
    }

    fn take(&mut self, step: Step) {
        let start = usize::try_from(step.sector * SECTOR).unwrap();
        let end = (step.sector + step.sectors).min(SECTORS) * SECTOR;
        let end = usize::try_from(end).unwrap();
        match step.kind {
            Kind::Write => {
                let byte = |at: usize| step.byte.wrapping_add(at.to_le_bytes()[1]);
                let data: Vec<u8> = (start..end).map(byte).collect();
                let written = self.bench.write(&self.disk, start as u64, &data);
                written.unwrap();
                self.model[start..end].copy_from_slice(&data);
            }
            Kind::Zero => {
                self.disk.punch(start as u64, (end - start) as u64).unwrap();
                self.model[start..end].fill(0);
            }
            Kind::Flush => {
                self.disk.sync().unwrap();
                self.flushed.clone_from(&self.model);
            }
            Kind::Reset => {
                self.disk.overlay_mut().unwrap().reset().unwrap();
                (self.model, self.flushed) = (base(), base());
            }
            Kind::Reopen | Kind::Crash if !self.is_file => {
                self.disk = self.bench.through_an_image(&self.disk);
            }
            Kind::Reopen => self.reopen(),
            Kind::Crash => self.crash(),
        }
        let found = self.bench.read(&self.disk, start as u64, end - start);
        assert!(found == self.model[start..end], "{step:?}");
    }

    fn reopen(&mut self) {
        // Its delta is let go before.
        self.disk = self.bench.base();
        self.disk = self.bench.in_file();
        assert_eq!(self.disk.overlay().unwrap().lost_blocks(), 0);
    }

    /// What a crash leaves is, block by block, what was flushed last or what was written since.
    fn crash(&mut self) {
        self.disk = self.bench.base();
        if self.bench.path("delta").exists() {
            self.bench.another_boot();
        } else {
            // Nothing was written, and it is not left behind.
            assert!(self.model == base());
        }
        self.disk = self.bench.in_file();
        let found = self.bench.all(&self.disk);
        for (place, block) in found.chunks(BLOCK).enumerate() {
            let range = place * BLOCK..place * BLOCK + block.len();
            assert!(
                *block == self.flushed[range.clone()] || *block == self.model[range],
                "block {place}"
            );
        }
        self.model.clone_from(&found);
        self.flushed = found;
    }

    fn finish(&self) {
        assert!(self.bench.all(&self.disk) == self.model);
        assert!(fs::read(self.bench.path("base")).unwrap() == base());
    }
}

fn check_steps(steps: Vec<Step>, is_file: bool) {
    let mut trial = Trial::new(is_file);
    for step in steps {
        trial.take(step);
    }
    trial.finish();
}

proptest! {
    #[test]
    fn a_delta_in_memory_is_a_disk(steps in steps()) {
        check_steps(steps, false);
    }

    #[test]
    fn a_delta_in_a_file_is_a_disk(steps in steps()) {
        check_steps(steps, true);
    }
}

#[test]
fn what_was_flushed_outlives_the_host_and_the_rest_is_told_of() {
    let bench = Bench::new();
    let disk = bench.in_file();
    bench.write(&disk, 0, &[1; 512]).unwrap();
    disk.sync().unwrap();
    bench.write(&disk, 8192, &[2; 4096]).unwrap();
    drop(disk);
    bench.another_boot();
    // A look changes nothing.
    for access in [DeltaAccess::Read, DeltaAccess::Continue] {
        let disk = bench.open(access).unwrap();
        assert_eq!(disk.overlay().unwrap().lost_blocks(), 1, "{access:?}");
        assert_eq!(bench.read(&disk, 0, 512), [1; 512]);
        assert_eq!(bench.read(&disk, 8192, 4096), base()[8192..12288]);
    }
    let disk = bench.open(DeltaAccess::Continue).unwrap();
    assert_eq!(disk.overlay().unwrap().lost_blocks(), 0);
}

#[test]
fn a_reset_that_was_cut_off_is_completed() {
    for is_cut in [false, true] {
        let bench = Bench::new();
        let disk = bench.in_file();
        bench.write(&disk, 0, &[1; 8192]).unwrap();
        disk.sync().unwrap();
        drop(disk);
        bench.change_header(|header| header.condition = Condition::Resetting);
        if is_cut {
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).open(bench.path("delta")).unwrap();
            file.set_len(4096).unwrap();
        }
        let disk = bench.open(DeltaAccess::Continue).unwrap();
        assert!(bench.all(&disk) == base());
        bench.write(&disk, 4096, &[3; 512]).unwrap();
        drop(disk);
        let disk = bench.open(DeltaAccess::Continue).unwrap();
        assert_eq!(bench.read(&disk, 4096, 512), [3; 512]);
        assert!(bench.read(&disk, 0, 4096) == base()[..4096]);
    }
}

#[test]
fn a_delta_is_bounded_and_what_is_discarded_makes_room() {
    let bench = Bench::new();
    let disk = bench.with(Delta::Memory(None), Some(8192)).unwrap();
    bench.write(&disk, 0, &[1; 512]).unwrap();
    bench.write(&disk, 4096, &[1; 4096]).unwrap();
    let full = bench.write(&disk, 8192, &[1; 512]).unwrap_err();
    assert!(full.to_string().contains("overlay.size_mib"), "{full}");
    assert_eq!(bench.read(&disk, 8192, 512), base()[8192..8704]);
    // What it has can be changed.
    bench.write(&disk, 4000, &[2; 200]).unwrap();
    assert_eq!(disk.overlay().unwrap().data_bytes(), 8192);
    disk.punch(4096, 4096).unwrap();
    bench.write(&disk, 8192, &[3; 512]).unwrap();
    assert!(bench.write(&disk, 4096, &[3; 512]).is_err());
    assert_eq!(bench.read(&disk, 4096, 4096), [0; 4096]);
}

#[test]
fn other_files_are_refused_by_name_and_left_alone() {
    let bench = Bench::new();
    let disk = bench.in_file();
    assert!(bench.refused(DeltaAccess::Create).contains("in use"));
    assert!(bench.refused(DeltaAccess::Read).contains("in use"));
    bench.write(&disk, 0, &[1; 512]).unwrap();
    drop(disk);
    let delta = fs::read(bench.path("delta")).unwrap();
    let mut damaged = delta.clone();
    damaged[40] ^= 1;
    let short = &delta[..delta.len() - 1];
    for (bytes, reason) in [
        (&base()[..], "it is not a delta"),
        (&[][..], "it is not a delta"),
        (&delta[..100], "damaged"),
        (&damaged[..], "damaged"),
        (short, "truncated"),
    ] {
        fs::write(bench.path("delta"), bytes).unwrap();
        let text = bench.refused(DeltaAccess::Continue);
        assert!(text.contains(reason) && text.contains("delta"), "{text}");
        assert!(fs::read(bench.path("delta")).unwrap() == bytes);
    }
    fs::remove_file(bench.path("delta")).unwrap();
    assert!(bench.refused(DeltaAccess::Continue).contains("Cannot open"));
    assert!(!bench.path("delta").exists());
    fs::create_dir(bench.path("delta")).unwrap();
    let _ = bench.refused(DeltaAccess::Create);
    fs::remove_dir(bench.path("delta")).unwrap();
    // Another base.
    fs::write(bench.path("delta"), &delta).unwrap();
    let mut other = base();
    other[DISK_BYTES - 1] ^= 1;
    fs::write(bench.path("base"), &other).unwrap();
    let text = bench.refused(DeltaAccess::Create);
    assert!(text.contains("another disk"), "{text}");
    fs::write(bench.path("base"), &other[..4096]).unwrap();
    let text = bench.refused(DeltaAccess::Create);
    assert!(text.contains("this one has 4096"), "{text}");
    assert!(fs::read(bench.path("delta")).unwrap() == delta);
}

#[test]
fn a_delta_whose_making_was_cut_off_is_made_again() {
    let bench = Bench::new();
    let layout = super::format::Layout::of(DISK_BYTES as u64);
    let path = bench.path("delta");
    let unfinished = || fs::File::create(&path).unwrap().set_len(layout.file_bytes);
    unfinished().unwrap();
    assert!(bench.refused(DeltaAccess::Read).contains("not a delta"));
    let disk = bench.in_file();
    bench.write(&disk, 0, &[7; 512]).unwrap();
    drop(disk);
    assert_eq!(bench.all(&bench.in_file())[..512], [7; 512]);
    // One byte of data, wherever it is, and it is somebody's file.
    unfinished().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[1], layout.file_bytes - 1).unwrap();
    assert!(bench.refused(DeltaAccess::Create).contains("not a delta"));
}

#[test]
fn a_delta_that_nobody_wrote_is_not_left_behind() {
    let bench = Bench::new();
    drop(bench.in_file());
    assert!(!bench.path("delta").exists());
    // One that was there stays.
    fs::write(bench.path("delta"), b"").unwrap();
    drop(bench.in_file());
    assert!(bench.path("delta").exists());
    drop(bench.in_file());
    assert!(bench.path("delta").exists());
}

#[test]
fn damage_in_a_saved_delta_is_found_when_it_is_read() {
    let bench = Bench::new();
    let disk = bench.in_memory(None);
    bench.write(&disk, 4096, &[1; 512]).unwrap();
    let stored = disk.overlay().unwrap().stored(disk.len_bytes()).unwrap();
    let part = DiskPart {
        sums: [7].into(),
        ..bench.section(&[1; 4096])
    };
    let saved = SavedDelta {
        map: stored.map,
        part: Some(part),
    };
    let disk = bench.in_memory(Some(saved));
    let damaged = disk.read(&mut bench.buffers(512), 4096).unwrap_err();
    assert!(damaged.to_string().contains("damaged"), "{damaged}");
    // Not even a part of it is copied up, or saved again.
    assert!(bench.write(&disk, 4096, &[2; 512]).is_err());
    assert!(disk.overlay().unwrap().prove_saved().is_err());
    bench.write(&disk, 4096, &[2; 4096]).unwrap();
    assert_eq!(bench.read(&disk, 4096, 4096), [2; 4096]);
    assert!(bench.read(&disk, 0, 4096) == base()[..4096]);
}

#[test]
fn nothing_is_written_after_a_reset_that_failed() {
    let bench = Bench::new();
    drop(bench.in_file());
    fs::write(bench.path("delta"), b"").unwrap();
    drop(bench.in_file());
    // Opened for reading only, as if the host's disk failed.
    let mut disk = bench.open(DeltaAccess::Read).unwrap();
    assert!(disk.overlay_mut().unwrap().reset().is_err());
    assert!(bench.all(&disk) == base());
    assert!(bench.write(&disk, 0, &[1; 512]).is_err());
    assert!(disk.sync().is_err());
}

#[test]
fn a_saved_delta_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let disk = bench.in_memory(None);
    bench.write(&disk, 4096, &[1; 512]).unwrap();
    disk.punch(8192, 4096).unwrap();
    let map = disk.overlay().unwrap().stored(disk.len_bytes());
    let map = map.unwrap().map;
    let run = |block, blocks, is_zero| OverlayRunV1 {
        block,
        blocks,
        is_zero,
    };
    assert_eq!(map.runs, [run(1, 1, false), run(2, 1, true)]);
    let refused = |map: OverlayMapV1| {
        let saved = SavedDelta { map, part: None };
        bench.with(Delta::Memory(Some(saved)), None).unwrap_err()
    };
    let with = |runs: &[OverlayRunV1]| OverlayMapV1 {
        runs: runs.to_vec(),
        ..map.clone()
    };
    for runs in [
        // Without a section.
        &[run(1, 1, false)][..],
        &[run(0, 0, true)],
        &[run(20, 2, true)],
        &[run(u64::MAX, 2, true)],
        &[run(3, 2, true), run(4, 1, true)],
    ] {
        let error = refused(with(runs));
        assert!(matches!(error, OverlayError::Saved), "{runs:?}: {error}");
    }
    let of_an_image = OverlayMapV1 {
        base: None,
        ..with(&[])
    };
    let shorter = OverlayMapV1 {
        disk_bytes: 4096,
        ..with(&[])
    };
    for other in [of_an_image, shorter] {
        assert!(matches!(refused(other), OverlayError::OtherBase));
    }
}
