//! A disk whose bytes are part of the image: it goes where the image goes, clones share it, and damage is found when the
//! guest reads it.

use std::fs;

use lightv_api::describe::{ImageDescription, SectionDescription};
use lightv_api::exit::{BAD_CONFIG, OK};
use lightv_tests::disk;
use lightv_tests::host::has_kvm;
use lightv_tests::process::Finished;
use lightv_tests::scratch::Scratch;

const BLOCKS: u64 = 512;

/// `blk.lv` with a disk of [`BLOCKS`] blocks of seed 42 in it; the file that it was made of is gone.
fn image(scratch: &Scratch) -> String {
    disk::create(&scratch.path("disk"), BLOCKS * 4096);
    let filler = scratch.build("blk", &["--disk", "d=disk"]);
    let _ = scratch
        .run(&["run", &filler, "--", "42", "512"])
        .with_code(OK);
    let options = ["--disk", "d=disk,ro,in-image"];
    let image = scratch.build("blk", &options);
    fs::remove_file(scratch.path("disk")).expect("the disk was there");
    image
}

fn verify(scratch: &Scratch, image: &str, options: &[&str]) -> Finished {
    let args = [&["run", image], options, &["--", "verify", "42", "512"]].concat();
    scratch.run(&args)
}

fn section(scratch: &Scratch, image: &str, kind: &str) -> SectionDescription {
    let shown = scratch.run(&["inspect", "--json", image]);
    let description: ImageDescription = serde_json::from_str(&shown.stdout).expect("a description");
    let mut sections = description.sections.into_iter();
    sections
        .find(|section| section.kind == kind)
        .expect("it is there")
}

#[test]
fn the_image_has_its_disk_with_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = image(&scratch);
    let disk = section(&scratch, &image, "disk");
    assert_eq!((disk.length, disk.offset % 4096), (BLOCKS * 4096, 0));
    fs::create_dir(scratch.path("elsewhere")).expect("a free name");
    fs::rename(scratch.path(&image), scratch.path("elsewhere/x.lv")).expect("a free name");
    for options in [&[][..], &["--cold"]] {
        let finished = verify(&scratch, "elsewhere/x.lv", options).with_code(OK);
        assert!(finished.stdout.contains("blk ok"), "{finished:?}");
    }
    // The guest cannot write into it.
    let refused = scratch.run(&["run", "elsewhere/x.lv", "--", "read-only"]);
    let _ = refused.with_code(OK);
}

#[test]
fn an_image_saved_of_a_restored_machine_has_the_disk_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = image(&scratch);
    let args = ["--boot", &image, "--save", "again.lv"];
    let _ = lightv_tests::process::run(&mut scratch.vmm(&args)).with_code(OK);
    fs::remove_file(scratch.path(&image)).expect("it was there");
    let _ = verify(&scratch, "again.lv", &[]).with_code(OK);
}

#[test]
fn another_disk_takes_its_place() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = image(&scratch);
    disk::create(&scratch.path("other"), BLOCKS * 4096);
    let finished = verify(&scratch, &image, &["--disk", "d=other"]).with_code(1);
    assert!(finished.stdout.contains("blk error"), "{finished:?}");
}

#[test]
fn damage_is_an_error_of_the_disk_and_named() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = image(&scratch);
    let disk = section(&scratch, &image, "disk");
    let mut bytes = scratch.read(&image);
    let at = disk.offset + disk.length / 2;
    bytes[usize::try_from(at).expect("a place in the file")] ^= 1;
    scratch.write("bad.lv", &bytes);
    assert!(!section(&scratch, "bad.lv", "disk").intact);
    let finished = verify(&scratch, "bad.lv", &[]).with_code(1);
    assert!(finished.stdout.contains("blk error"), "{finished:?}");
    for word in ["d", "the image is damaged", "1048576"] {
        assert!(finished.stderr.contains(word), "{word}: {finished:?}");
    }
}

#[test]
fn a_disk_that_may_be_written_cannot_be_in_an_image() {
    let scratch = Scratch::new();
    disk::create(&scratch.path("disk"), 4096);
    let args = ["build", "blk", "--disk", "d=disk,in-image", "-o", "x.lv"];
    let finished = scratch.run(&args).with_code(BAD_CONFIG);
    assert!(finished.stderr.contains("in_image"), "{finished:?}");
    assert!(!scratch.path("x.lv").exists());
}
