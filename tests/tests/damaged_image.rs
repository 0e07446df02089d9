//! A damaged, cut or foreign image is refused by name in less than a second, before anything of it runs.

use std::fs::File;
use std::time::Duration;

use lightv_api::describe::ImageDescription;
use lightv_api::exit::{BAD_CONFIG, FAILURE};
use lightv_tests::disk;
use lightv_tests::host::has_kvm;
use lightv_tests::netns::Netns;
use lightv_tests::process::{run, wait_for};
use lightv_tests::scratch::{Listing, Scratch};

const REFUSAL_MAX: Duration = Duration::from_secs(1);

/// Offsets in the header (docs/snapshot-format.md).
const VERSION_AT: usize = 8;
const ARCHITECTURE_AT: usize = 10;
const SECTIONS_AT: usize = 12;
const CHECKSUM_AT: usize = 56;
const HEADER_BYTES: usize = 64;

/// An image with every kind of section that a machine with all kinds of devices has.
struct Sound {
    scratch: Scratch,
    netns: Netns,
    bytes: Vec<u8>,
    description: ImageDescription,
    before: Listing,
}

impl Sound {
    fn new() -> Self {
        let scratch = Scratch::new();
        let netns = Netns::with_tap();
        disk::create(&scratch.path("disk"), 1 << 20);
        let options = [
            "--disk",
            "d=disk",
            "--net",
            "tap0,ip=10.0.0.2/24",
            "--entropy",
            "-e",
            "A=1",
        ];
        let image = netns.within(|| scratch.build("hello-world", &options));
        let description = scratch.run(&["inspect", "--json", &image]).with_code(0);
        let description = serde_json::from_str(&description.stdout).expect("a description");
        let bytes = scratch.read(&image);
        scratch.write("bad.lv", "");
        let before = scratch.listing();
        Self {
            scratch,
            netns,
            bytes,
            description,
            before,
        }
    }

    /// Looks whether `bytes` are refused with `words` in the message.
    #[track_caller]
    fn check(&self, what: &str, bytes: &[u8], words: &[&str]) {
        self.scratch.write("bad.lv", bytes);
        self.check_file(what, words);
    }

    #[track_caller]
    fn check_file(&self, what: &str, words: &[&str]) {
        let try_once = || {
            let start = || run(&mut self.scratch.lightv(&["run", "bad.lv"]));
            let finished = self.netns.within(start);
            println!("{what}: {}", finished.stderr.trim_end());
            finished.assert_refused(BAD_CONFIG, &[&["bad.lv"], words].concat());
            finished.took
        };
        // On a loaded host one of some tries counts.
        wait_for(&format!("a quick refusal of {what}"), || {
            (try_once() < REFUSAL_MAX).then_some(())
        });
        self.scratch.assert_nothing_left(&self.before);
    }

    fn flipped(&self, at: usize) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[at] ^= 0x10;
        bytes
    }
}

#[test]
fn a_flipped_byte_in_any_section_is_refused_with_its_name() {
    if !has_kvm() {
        return;
    }
    let sound = Sound::new();
    let kinds: Vec<&str> = sound
        .description
        .sections
        .iter()
        .map(|section| section.kind.as_str())
        .collect();
    for kind in [
        "manifest",
        "vm",
        "vcpu",
        "memory-map",
        "memory",
        "kernel",
        "virtio-blk",
        "virtio-net",
    ] {
        assert!(kinds.contains(&kind), "no {kind}: {kinds:?}");
    }
    // A section without bytes has none to flip: its entry in the table is all of it.
    for section in sound
        .description
        .sections
        .iter()
        .filter(|section| section.length > 0)
    {
        let name = format!("{}[{}]", section.kind, section.index);
        let last = section.length - 1;
        for place in [0, last / 2, last] {
            let at = usize::try_from(section.offset + place).expect("a place in the file");
            sound.check(
                &format!("{name} byte {place}"),
                &sound.flipped(at),
                &[&name, "damaged"],
            );
        }
    }
}

#[test]
fn inspect_tells_which_section_is_damaged() {
    if !has_kvm() {
        return;
    }
    let sound = Sound::new();
    for (number, section) in sound.description.sections.iter().enumerate() {
        if section.length == 0 {
            continue;
        }
        let at = usize::try_from(section.offset).expect("a place in the file");
        sound.scratch.write("bad.lv", sound.flipped(at));
        let inspected = sound.scratch.run(&["inspect", "--json", "bad.lv"]);
        if section.kind == "manifest" {
            // Without it there is nothing to describe.
            inspected.assert_refused(BAD_CONFIG, &["manifest"]);
            continue;
        }
        let inspected = inspected.with_code(FAILURE);
        let found: ImageDescription =
            serde_json::from_str(&inspected.stdout).expect("a description");
        let damaged: Vec<usize> = (0..found.sections.len())
            .filter(|index| !found.sections[*index].intact)
            .collect();
        assert_eq!(damaged, [number], "{}", section.kind);
    }
}

#[test]
fn header_and_table_are_refused_whatever_byte_is_changed() {
    if !has_kvm() {
        return;
    }
    let sound = Sound::new();
    let front = HEADER_BYTES + sound.description.sections.len() * 64;
    for at in (0..HEADER_BYTES).chain((HEADER_BYTES..front).step_by(13)) {
        let words: &[&str] = match at {
            0..VERSION_AT => &["not a LightV image"],
            VERSION_AT..ARCHITECTURE_AT => &["format", "reads format 1"],
            ARCHITECTURE_AT..SECTIONS_AT => &["architecture", "x86_64"],
            CHECKSUM_AT.. => &["damaged"],
            _ => &["refused"],
        };
        sound.check(&format!("byte {at}"), &sound.flipped(at), words);
    }
    let mut unknown = sound.bytes.clone();
    unknown[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(b"newthing");
    sound.check("unknown kind", &unknown, &["table is damaged"]);
}

#[test]
fn other_formats_and_architectures_are_refused_with_their_numbers() {
    if !has_kvm() {
        return;
    }
    let sound = Sound::new();
    let with = |at: usize, value: &[u8]| {
        let mut bytes = sound.bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    sound.check(
        "newer",
        &with(VERSION_AT, &[2, 0]),
        &["format 2", "reads format 1"],
    );
    sound.check(
        "much newer",
        &with(VERSION_AT, &[0xff, 0xff]),
        &["format 65535"],
    );
    sound.check("older", &with(VERSION_AT, &[0, 0]), &["format 0"]);
    sound.check(
        "other CPU",
        &with(ARCHITECTURE_AT, &[2, 0]),
        &["architecture 2", "x86_64"],
    );
    sound.check(
        "no CPU",
        &with(ARCHITECTURE_AT, &[0, 0]),
        &["architecture 0"],
    );
    sound.check(
        "sections",
        &with(SECTIONS_AT, &[0xff; 4]),
        &["sections", "4096"],
    );
    let mut swapped = sound.bytes.clone();
    swapped[..8].reverse();
    sound.check("swapped magic", &swapped, &["not a LightV image"]);
    // What a text conversion does to it.
    let converted: Vec<u8> = sound
        .bytes
        .iter()
        .flat_map(|byte| {
            if *byte == b'\n' {
                vec![13, 10]
            } else {
                vec![*byte]
            }
        })
        .collect();
    sound.check("text conversion", &converted, &["not a LightV image"]);
}

#[test]
fn a_file_cut_anywhere_is_refused_as_truncated() {
    if !has_kvm() {
        return;
    }
    let sound = Sound::new();
    let length = sound.bytes.len();
    let edges = [
        1,
        7,
        8,
        9,
        63,
        64,
        65,
        100,
        127,
        4095,
        4096,
        length / 2,
        length - 4096,
        length - 2,
        length - 1,
    ];
    let ends = sound
        .description
        .sections
        .iter()
        .map(|section| section.offset + section.length);
    let ends: Vec<usize> = ends
        .map(|end| usize::try_from(end).expect("a place in the file"))
        .collect();
    let between = (1..16).map(|part| length / 16 * part);
    let cuts: Vec<usize> = edges
        .into_iter()
        .chain(ends)
        .chain(between)
        .filter(|cut| *cut < length)
        .collect();
    assert!(cuts.len() >= 30, "{}", cuts.len());
    for cut in cuts {
        sound.check(
            &format!("cut at {cut}"),
            &sound.bytes[..cut],
            &["truncated", &cut.to_string()],
        );
    }
    sound.check("empty", &[], &["not a LightV image"]);
}

#[test]
fn bytes_after_the_end_are_refused() {
    if !has_kvm() {
        return;
    }
    let sound = Sound::new();
    for more in [1, 7, 64, 4096] {
        let bytes = [&sound.bytes[..], &vec![0; more]].concat();
        sound.check(
            &format!("{more} more"),
            &bytes,
            &[&bytes.len().to_string(), &sound.bytes.len().to_string()],
        );
    }
    let twice = [&sound.bytes[..], &sound.bytes[..]].concat();
    sound.check("twice", &twice, &["header says"]);
    sound.scratch.write("bad.lv", &sound.bytes);
    let file = File::options()
        .write(true)
        .open(sound.scratch.path("bad.lv"))
        .expect("the file");
    file.set_len(1 << 30).expect("a sparse file");
    sound.check_file("1 GiB sparse", &["1073741824"]);
}

#[test]
fn sections_of_another_machine_are_refused() {
    if !has_kvm() {
        return;
    }
    let sound = Sound::new();
    let other = Sound::new();
    for (ours, theirs) in sound
        .description
        .sections
        .iter()
        .zip(&other.description.sections)
    {
        let place = |section: &lightv_api::describe::SectionDescription| {
            let start = usize::try_from(section.offset).expect("a place in the file");
            start..start + usize::try_from(section.length).expect("a length")
        };
        if ours.checksum == theirs.checksum || ours.length != theirs.length {
            continue;
        }
        let mut bytes = sound.bytes.clone();
        bytes[place(ours)].copy_from_slice(&other.bytes[place(theirs)]);
        sound.check(
            &format!("the other's {}", ours.kind),
            &bytes,
            &[&ours.kind, "damaged", "build it anew"],
        );
    }
}
