//! A Linux guest: it boots by the tables that it is given, sees its CPUs, ends as it says, and goes on after a restore.

use lightv_api::exit::OK;
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Finished, Process, run};
use lightv_tests::scratch::Scratch;
use lightv_tests::{linux, machine};
use rustix::process::Signal;
use serde_json::json;

/// Says how many CPUs there are and what it was told, counts, and ends as it was told.
const INIT: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>
int main(int argc, char **argv) {
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    printf("init: cpus=%d args=%d\n", CPU_COUNT(&cpus), argc - 1);
    for (int i = 1; i <= 20; i++) {
        printf("tick %d\n", i);
        fflush(stdout);
        usleep(100000);
    }
    int is_reboot = argc > 1 && !strcmp(argv[1], "reboot");
    reboot(is_reboot ? RB_AUTOBOOT : RB_POWER_OFF);
    return 1;
}
"#;

/// A configuration with `vcpus`, and `args` for the kernel.
fn config(scratch: &Scratch, vcpus: u32, args: &str) -> String {
    let boot = json!({"boot-source": {
        "kernel_image_path": linux::kernel(),
        "initrd_path": linux::initrd(scratch, INIT),
        "boot_args": format!("console=ttyS0 quiet panic=-1 {args}"),
    }});
    let cpus = json!({"machine-config": {"vcpu_count": vcpus, "mem_size_mib": 128}});
    scratch.config("vm.json", &machine::with(&boot, &cpus))
}

fn check(vcpus: u32, args: &str, told: usize) -> Finished {
    let scratch = Scratch::new();
    let config = config(&scratch, vcpus, args);
    let finished = run(&mut scratch.vmm(&["--config", &config])).with_code(OK);
    let said = format!("init: cpus={vcpus} args={told}");
    assert!(finished.stdout.contains(&said), "{said}: {finished:?}");
    assert!(finished.stdout.contains("tick 20"), "{finished:?}");
    finished
}

#[test]
fn linux_finds_its_cpus_by_acpi_and_powers_off() {
    if has_kvm() {
        let _ = check(2, "-- poweroff", 1);
    }
}

#[test]
fn linux_finds_its_cpus_by_the_mp_table_and_reboots() {
    if has_kvm() {
        let _ = check(2, "acpi=off reboot=k -- reboot now", 2);
    }
}

#[test]
fn a_linux_that_was_saved_counts_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let config = config(&scratch, 1, "");
    let args = ["--config", &config, "--save", "x.lv", "--save-at", "signal"];
    let vm = Process::start(&mut scratch.vmm(&args));
    vm.wait_stdout(|text| text.contains("tick 3\r\n").then_some(()));
    vm.signal(Signal::USR1);
    let saved = vm.finish().with_code(OK);
    let last = (1..=20)
        .rev()
        .find(|n| saved.stdout.contains(&format!("tick {n}\r\n")));
    let next = last.expect("it has counted") + 1;
    assert!(next < 20, "it was saved while it counted: {saved:?}");
    for _ in 0..2 {
        let finished = scratch.run(&["run", "x.lv"]).with_code(OK);
        let first = finished
            .stdout
            .find("tick ")
            .map(|at| &finished.stdout[at..]);
        assert!(
            first.is_some_and(|text| text.starts_with(&format!("tick {next}"))),
            "tick {next}: {finished:?}"
        );
        assert!(finished.stdout.contains("tick 20"), "{finished:?}");
    }
}
