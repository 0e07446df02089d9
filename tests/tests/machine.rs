//! The machine itself: memory of any size, vCPUs, the ways into a kernel, initial RAM disks.

use std::fs;

use lightv_api::exit::{BAD_CONFIG, OK};
use lightv_tests::host::has_kvm;
use lightv_tests::machine::{self, CODE_THAT_PRINTS_INITRD};
use lightv_tests::process::{Finished, run};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// Runs the machine `config`.
fn run_config(scratch: &Scratch, config: &Value) -> Finished {
    let config = scratch.config("vm.json", config);
    run(&mut scratch.vmm(&["--config", &config]))
}

/// Memory of the host in MiB.
fn host_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("MemTotal") >> 10
}

#[test]
fn memory_of_any_size_is_all_there() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let base = machine::config(&scratch.guest_kernel(), "args");
    let host_mib = host_mib();
    for mib in [
        16, 33, 63, 128, 129, 1023, 2047, 2048, 2049, 3071, 3072, 3073, 3328, 4095, 4096, 4097,
        8192,
    ] {
        let config = machine::with(&base, &json!({"machine-config": {"mem_size_mib": mib}}));
        let finished = run_config(&scratch, &config);
        if mib > host_mib {
            finished.assert_refused(BAD_CONFIG, &["mem_size_mib", &host_mib.to_string()]);
            continue;
        }
        assert_eq!(
            finished.with_code(OK).value("ram_bytes"),
            (mib << 20).to_string()
        );
    }
}

#[test]
fn memory_round_the_hole_is_saved_and_restored() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let host_mib = host_mib();
    for mib in [16, 3071, 3072, 3073, 4097]
        .into_iter()
        .filter(|mib| *mib <= host_mib)
    {
        let image = scratch.build("args", &["--memory", &mib.to_string()]);
        let finished = scratch.run(&["run", &image]).with_code(OK);
        assert_eq!(finished.value("ram_bytes"), (mib << 20).to_string());
        assert_eq!(finished.value("restores"), "1");
        let bytes = scratch.read(&image).len();
        assert!(
            bytes < 2 << 20,
            "{mib} MiB of RAM, hardly used, make an image of {bytes} bytes"
        );
    }
}

/// The ids in `cpus online=N apic_ids=0,1,…`.
fn check_cpus(finished: &Finished, vcpus: u64) {
    let expected = (0..vcpus)
        .map(|id| id.to_string())
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(
        finished.stdout,
        format!("cpus online={vcpus} apic_ids={expected}\n"),
        "{finished:?}"
    );
}

#[test]
fn every_vcpu_comes_up_with_an_id_of_its_own() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let base = machine::config(&scratch.guest_kernel(), "smp");
    for vcpus in [1, 2, 3, 8, 31, 32] {
        let config = machine::with(&base, &json!({"machine-config": {"vcpu_count": vcpus}}));
        check_cpus(&run_config(&scratch, &config).with_code(OK), vcpus);
    }
}

#[test]
fn vcpus_that_wait_are_started_after_a_restore_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for vcpus in [1, 2, 4, 32] {
        let image = scratch.build("smp", &["--vcpus", &vcpus.to_string()]);
        check_cpus(&scratch.run(&["run", &image]).with_code(OK), vcpus);
    }
}

#[test]
fn a_kernel_is_entered_by_either_protocol() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let kernel = scratch.guest_kernel();
    for protocol in ["auto", "linux", "pvh"] {
        for mib in [16, 128, 3073] {
            let source = json!({"kernel_image_path": kernel, "boot_args": "app=args -- x y", "boot_protocol": protocol});
            let config = json!({"boot-source": source, "machine-config": {"mem_size_mib": mib, "vcpu_count": 2}});
            let finished = run_config(&scratch, &config).with_code(OK);
            assert!(
                finished.stdout.starts_with("arg[0]=x\narg[1]=y\n"),
                "{protocol}: {finished:?}"
            );
            assert_eq!(finished.value("vcpus"), "2");
        }
    }
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("bzimage", machine::bzimage(&machine::code_that_exits(7)));
    for protocol in ["auto", "linux"] {
        let source = json!({"kernel_image_path": "bzimage", "boot_protocol": protocol});
        let finished = run_config(&scratch, &json!({"boot-source": source})).with_code(7);
        assert_eq!(
            (finished.stdout.as_str(), finished.stderr.as_str()),
            ("", "")
        );
    }
}

#[test]
fn an_elf_without_a_pvh_note_is_entered_by_the_linux_protocol() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("elf", machine::elf(&machine::code_that_exits(9)));
    let _ = run_config(
        &scratch,
        &json!({"boot-source": {"kernel_image_path": "elf"}}),
    )
    .with_code(9);
}

/// Boots the kernel `kernel`, which prints ends of its initial RAM disk, with one of `bytes`.
fn check_initrd(scratch: &Scratch, kernel: &str, memory_mib: u64, bytes: usize) {
    const SHOWN: usize = 64;
    let mut initrd = vec![b'.'; bytes];
    for (place, letter) in (0..bytes.min(SHOWN)).zip((b'a'..=b'z').cycle()) {
        initrd[place] = letter;
        initrd[bytes - 1 - place] = letter.to_ascii_uppercase();
    }
    scratch.write("initrd", &initrd);
    let source = json!({"kernel_image_path": kernel, "initrd_path": "initrd"});
    let config = json!({"boot-source": source, "machine-config": {"mem_size_mib": memory_mib}});
    let finished = run_config(scratch, &config);
    assert_eq!(
        finished.code, 0,
        "{bytes} bytes, status 1: not on a page: {finished:?}"
    );
    let shown = bytes.min(SHOWN);
    let expected = [&initrd[..shown], &initrd[bytes - shown..]].concat();
    assert_eq!(
        finished.stdout.as_bytes(),
        expected,
        "{bytes} bytes in {memory_mib} MiB"
    );
}

#[test]
fn an_initrd_of_any_size_arrives_whole_and_on_a_page() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("elf", machine::elf(CODE_THAT_PRINTS_INITRD));
    scratch.write("bzimage", machine::bzimage(CODE_THAT_PRINTS_INITRD));
    // The kernel ends in the first page after 1 MiB: so much is free after it.
    let just_fits = (15 << 20) - 4096;
    for bytes in [1, 64, 4095, 4096, 4097, 5 << 20, just_fits] {
        check_initrd(&scratch, "elf", 16, bytes);
    }
    check_initrd(&scratch, "bzimage", 128, 4097);
    // Above the hole there is RAM too, but an initrd lies below it.
    for memory_mib in [2049, 3073, 5000]
        .into_iter()
        .filter(|mib| *mib <= host_mib())
    {
        check_initrd(&scratch, "elf", memory_mib, 64 << 20);
    }
}

#[test]
fn an_image_keeps_its_initrd_for_cold_starts() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // READY at 0xc0000800, then as above.
    let mut code = vec![0xb9, 0x00, 0x08, 0x00, 0xc0, 0xc7, 0x01, 0, 0, 0, 0];
    code.extend(CODE_THAT_PRINTS_INITRD);
    scratch.write("kernel", machine::elf(&code));
    scratch.write("initrd", "short initrd");
    let args = [
        "build", "--kernel", "kernel", "--initrd", "initrd", "--memory", "16", "-o", "x.lv",
    ];
    let _ = scratch.run(&args).with_code(OK);
    fs::remove_file(scratch.path("initrd")).expect("the initrd");
    fs::remove_file(scratch.path("kernel")).expect("the kernel");
    for options in [
        &["run", "x.lv"][..],
        &["run", "--cold", "x.lv"],
        &["run", "--cold", "--memory", "300", "x.lv"],
    ] {
        let finished = scratch.run(options).with_code(OK);
        assert_eq!(finished.stdout, "short initrdshort initrd", "{options:?}");
    }
}

#[test]
fn output_goes_where_it_belongs_also_in_large_pieces() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("args", &[]);
    let args: Vec<String> = (0..3000)
        .map(|number| format!("argument-{number:05}"))
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let finished = scratch
        .run(&[&["run", &image, "--"], &args[..]].concat())
        .with_code(OK);
    let found: Vec<&str> = finished
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("arg[")?.split_once("]="))
        .map(|(_, text)| text)
        .collect();
    assert_eq!(found, args);
    assert_eq!(finished.stderr, "");
}

#[test]
fn the_serial_port_prints_before_and_after_a_restore() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("hello", &["--cmdline", "console=serial"]);
    for options in [&["run"][..], &["run", "--cold"]] {
        let finished = scratch
            .run(&[options, &[&image, "--", "serial port"]].concat())
            .with_code(OK);
        assert_eq!(finished.stdout, "Hello, serial port!\n", "{options:?}");
    }
}
