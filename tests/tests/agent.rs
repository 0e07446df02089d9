//! LightV's agent as PID 1 of a Linux guest: it runs one program, has the machine saved when that is ready, and makes each
//! restored machine an own one.

use std::collections::BTreeSet;

use lightv_api::exit::OK;
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Finished, run};
use lightv_tests::scratch::Scratch;
use lightv_tests::{linux, machine};
use serde_json::{Value, json};

/// Says what must differ between clones, before anything else, and then what it was told.
const APP: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <termios.h>
#include <unistd.h>
static void show(const char *name, const void *bytes, int count) {
    printf("%s ", name);
    for (int i = 0; i < count; i++) printf("%02x", ((const unsigned char *)bytes)[i]);
    printf("\n");
}
int main(int argc, char **argv) {
    char random[16], canary[8], text[64];
    getrandom(random, sizeof random, 0);
    __asm__("mov %%fs:0x28, %0" : "=r"(*(long *)canary));
    show("random", random, sizeof random);
    show("auxv", (void *)getauxval(AT_RANDOM), 16);
    show("canary", canary, sizeof canary);
    if (argc > 2 && !strcmp(argv[2], "ready")) {
        // What waits in the driver of the serial port would be printed by each clone.
        tcdrain(1);
        FILE *ready = fopen("/run/lightv/ready", "r");
        while (fgets(text, sizeof text, ready)) {}
        fclose(ready);
    }
    printf("says %s %s\n", argv[1], getenv("SAYS"));
    gethostname(text, sizeof text);
    printf("on %s\n", text);
    return argc > 3 ? atoi(argv[3]) : 0;
}
"#;

/// A machine in `scratch` that runs the app with `args`, by these orders.
fn config(scratch: &Scratch, args: &[&str], orders: &Value) -> String {
    let mut programs = linux::dynamic_program(scratch, APP);
    programs.push(("init", linux::agent()));
    let boot = json!({"boot-source": {
        "kernel_image_path": linux::kernel(),
        "initrd_path": linux::initrd_of(scratch, &programs),
        "boot_args": "console=ttyS0 quiet panic=-1",
    }});
    let rest = json!({
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "run": {"args": args, "env": {"SAYS": "hello"}, "agent": orders},
    });
    scratch.config("vm.json", &machine::with(&boot, &rest))
}

fn save(scratch: &Scratch, args: &[&str], orders: &Value) -> Finished {
    let config = config(scratch, args, orders);
    run(&mut scratch.vmm(&["--config", &config, "--save", "x.lv"])).with_code(OK)
}

/// The lines of `finished` that begin with `name`.
fn line<'a>(finished: &'a Finished, name: &str) -> &'a str {
    let mut lines = finished.stdout.lines().map(str::trim_end);
    lines
        .find(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("no {name}: {finished:?}"))
}

#[test]
fn clones_of_a_loaded_program_differ_from_its_first_instruction_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let orders = json!({"entrypoint": ["app"], "hostname": "box"});
    let saved = save(&scratch, &["one", "x", "7"], &orders);
    assert!(
        !saved.stdout.contains("random"),
        "it has not run: {saved:?}"
    );
    let clones: Vec<Finished> = (0..4)
        .map(|_| run(&mut scratch.vmm(&["--restore", "x.lv"])).with_code(7))
        .collect();
    for name in ["random", "auxv", "canary"] {
        let values: BTreeSet<&str> = clones.iter().map(|clone| line(clone, name)).collect();
        assert_eq!(values.len(), clones.len(), "{values:?}");
    }
    assert_eq!(line(&clones[0], "says"), "says one hello");
    assert_eq!(line(&clones[0], "on"), "on box");
}

#[test]
fn a_restored_machine_runs_what_it_is_told_then() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    save(&scratch, &["one"], &json!({"entrypoint": ["/bin/app"]}));
    let args = [
        "--restore",
        "x.lv",
        "--env",
        "SAYS=bye",
        "--",
        "two",
        "x",
        "9",
    ];
    let told = run(&mut scratch.vmm(&args)).with_code(9);
    assert_eq!(line(&told, "says"), "says two bye");
    assert_eq!(line(&told, "on"), "on lightv");
}

#[test]
fn a_program_that_reads_the_doorbell_is_saved_there() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let orders = json!({"entrypoint": ["app"], "ready": "doorbell"});
    let saved = save(&scratch, &["one", "ready", "5"], &orders);
    assert!(!saved.stdout.contains("says"), "it stands: {saved:?}");
    for _ in 0..2 {
        let restored = run(&mut scratch.vmm(&["--restore", "x.lv"])).with_code(5);
        assert_eq!(line(&restored, "says"), "says one hello");
        assert!(!restored.stdout.contains("random"), "{restored:?}");
    }
}

#[test]
fn what_cannot_be_run_ends_as_in_a_shell() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for (orders, code, said) in [
        (
            json!({"entrypoint": ["nothing"]}),
            127,
            "cannot run nothing: No such file or directory",
        ),
        (
            json!({"entrypoint": ["/lib"]}),
            126,
            "cannot run /lib: Permission denied",
        ),
        (json!({}), 127, "no program to run"),
    ] {
        let config = config(&scratch, &[], &orders);
        let finished = run(&mut scratch.vmm(&["--config", &config])).with_code(code);
        let _ = line(&finished, &format!("lightv-init: {said}"));
    }
}
