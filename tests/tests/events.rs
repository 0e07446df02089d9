//! `GET /events` of real machines: what is told of a life, in which order, and that neither a guest nor a reader can spoil it.

use lightv_tests::api::Api;
use lightv_tests::events::Events;
use lightv_tests::host::{binary, has_kvm};
use lightv_tests::machine;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// A machine that a file describes, and its API.
fn start(scratch: &Scratch, name: &str, app: &str) -> (Api, Process) {
    let config = machine::config(&scratch.guest_kernel(), app);
    let config = scratch.config("vm.json", &config);
    Api::start(scratch, name, &["--config", &config])
}

/// `lightv-vmm` with nothing but an API.
fn start_empty(scratch: &Scratch, name: &str) -> (Api, Process) {
    Api::start(scratch, name, &[])
}

fn boot(api: &Api, kernel: &str, args: &str) {
    api.put(
        "/boot-source",
        &json!({"kernel_image_path": kernel, "boot_args": args}),
    );
    api.act("InstanceStart");
}

fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().expect("a name"))
        .collect()
}

#[test]
fn a_life_is_told_from_its_start_to_its_end_and_a_clones_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start_empty(&scratch, "first");
    let mut early = Events::of(&api);
    boot(&api, &scratch.guest_kernel(), "app=tick -- 0 20");
    early.expect("started");
    early.expect("ready");
    api.set_state("Paused");
    // Said once: it stands still already.
    api.set_state("Paused");
    early.expect("paused");
    let save = json!({"snapshot_path": "a.state", "mem_file_path": "a.mem"});
    api.put("/snapshot/create", &save);
    assert_eq!(early.expect("saved")["path"], "a.state");
    let refused = json!({"snapshot_path": "nowhere/a", "mem_file_path": "b.mem"});
    assert_eq!(api.call("PUT", "/snapshot/create", &refused).status, 400);
    api.set_state("Resumed");
    early.expect("resumed");
    let mut late = Events::of(&api);
    let mut back = Events::after(&api, 4);

    let (clone_api, clone) = start_empty(&scratch, "clone");
    let load = json!({"snapshot_path": "a.state", "mem_file_path": "a.mem"});
    clone_api.put("/snapshot/load", &load);
    let mut of_clone = Events::of(&clone_api);
    assert_eq!(of_clone.expect("loaded")["paused"], true);
    clone_api.set_state("Resumed");
    of_clone.expect("resumed");

    assert_eq!(process.end().code, 143);
    let ended = early.expect("ended");
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!(143), &json!("ended by signal 15"))
    );
    assert_eq!(early.next_event(), None);
    for name in ["started", "ready", "paused", "saved", "resumed"] {
        late.expect(name);
    }
    assert_eq!(late.expect("ended"), ended);
    back.expect("resumed");
    assert_eq!(back.expect("ended"), ended);
    assert_eq!(clone.end().code, 143);
    assert_eq!(names(&of_clone.rest()), ["ended"]);
}

#[test]
fn the_end_is_told_when_all_is_tidied_up() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start_empty(&scratch, "vm");
    let mut events = Events::of(&api);
    let socket = api.socket().to_str().expect("text").to_owned();
    let args = ["api", "--socket", &socket, "GET", "/events"];
    let follower = Process::start(&mut scratch.command(binary("lightv"), &args));
    scratch.write(
        "kernel",
        machine::elf(&machine::code_that_exits_at_a_key(7)),
    );
    boot(&api, "kernel", "");
    follower.wait_stdout(|text| text.contains("event: started\n").then_some(()));
    // Refused until the guest has a driver.
    wait_for("a key that is pressed", || {
        let press = json!({"action_type": "SendCtrlAltDel"});
        (api.call("PUT", "/actions", &press).status == 204).then_some(())
    });
    events.expect("started");
    let ended = events.expect("ended");
    assert!(!api.socket().exists());
    assert_eq!(ended["status"], 7);
    assert_eq!(ended["reason"], "the guest ended: it exited with status 7");
    assert_eq!(events.next_event(), None);
    assert_eq!(process.finish().code, 7);
    let followed = follower.finish().with_code(0).stdout;
    assert!(
        followed.contains("\"event\":\"ended\",\"status\":7"),
        "{followed}"
    );
}

#[test]
fn a_late_reader_of_a_machine_of_a_file_learns_how_it_began() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, "vm", "tick -- 0 20");
    process.wait_stdout(|text| text.contains("tick 3").then_some(()));
    let mut events = Events::of(&api);
    events.expect("started");
    events.expect("ready");
    assert_eq!(process.end().code, 143);
    assert_eq!(names(&events.rest()), ["ended"]);
}

#[test]
fn a_panic_is_told_before_the_end() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start_empty(&scratch, "vm");
    let events = Events::of(&api);
    boot(&api, &scratch.guest_kernel(), "app=panic");
    let events = events.rest();
    assert_eq!(
        names(&events),
        ["started", "ready", "guest-panic", "ended"],
        "{events:?}"
    );
    assert_eq!(events[3]["status"], 162);
    assert_eq!(process.finish().code, 162);
}

#[test]
fn a_process_that_ends_without_a_machine_says_so() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start_empty(&scratch, "vm");
    let events = Events::of(&api);
    let refused = api.call("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    assert_eq!(refused.status, 400);
    assert_eq!(process.end().code, 143);
    assert_eq!(names(&events.rest()), ["ended"]);
}

#[test]
fn all_readers_have_the_end_before_the_process_is_gone() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = start(&scratch, "vm", "tick -- 0 20");
    let readers: Vec<Events> = (0..64).map(|_| Events::of(&api)).collect();
    let refused = api.call("GET", "/events", &Value::Null);
    assert!(refused.fault().contains("64 clients"), "{refused:?}");
    assert_eq!(process.end().code, 143);
    for reader in readers {
        assert_eq!(names(&reader.rest()).last(), Some(&"ended"));
    }
}

/// The register page of the first device.
const FIRST_DEVICE: u32 = 0xc001_0000;

/// `mov dword [rcx + OFFSET], VALUE`, with the register page in rcx.
fn store(offset: u32, value: u32) -> Vec<u8> {
    [
        &[0xc7, 0x81],
        &offset.to_le_bytes()[..],
        &value.to_le_bytes(),
    ]
    .concat()
}

/// Starts the first device `times` times with a queue outside RAM, and exits with 0.
fn code_that_breaks_a_device(times: usize) -> Vec<u8> {
    let mut code = [&[0xb9][..], &FIRST_DEVICE.to_le_bytes()].concat(); // mov ecx, page
    // Status, the features' upper half, queue size, addresses, ready (virtio 1.2 §4.2.2).
    let stores = [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, 8),
        (0x80, 0xf000_0000),
        (0x90, 0xf000_1000),
        (0xa0, 0xf000_2000),
        (0x44, 1),
        (0x70, 15),
    ];
    for _ in 0..times {
        code.extend(stores.iter().flat_map(|(at, value)| store(*at, *value)));
    }
    code.extend(machine::code_that_exits(0));
    code
}

#[test]
fn a_guest_cannot_flood_the_events_with_devices_that_it_breaks() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("kernel", machine::elf(&code_that_breaks_a_device(300)));
    let (api, process) = start_empty(&scratch, "vm");
    let events = Events::of(&api);
    api.put("/entropy", &json!({}));
    boot(&api, "kernel", "");
    let events = events.rest();
    let names = names(&events);
    assert_eq!(names.first(), Some(&"started"));
    assert_eq!(names.last(), Some(&"ended"));
    let resets = &events[1..events.len() - 1];
    assert_eq!(resets.len(), 10, "{names:?}");
    for event in resets {
        assert_eq!(event["event"], "device-needs-reset");
        assert_eq!(event["device"], "entropy");
    }
    assert_eq!(process.finish().code, 0);
}

#[test]
fn a_guest_that_is_ready_again_and_again_is_told_of_once() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // mov ecx, READY; mov edx, 1000; mov dword [rcx], 0; dec edx; jnz to the store
    let mut code = vec![0xb9, 0x00, 0x08, 0x00, 0xc0, 0xba, 0xe8, 0x03, 0, 0];
    code.extend([0xc7, 0x01, 0, 0, 0, 0, 0xff, 0xca, 0x75, 0xf6]);
    code.extend(machine::code_that_exits(0));
    scratch.write("kernel", machine::elf(&code));
    let (api, process) = start_empty(&scratch, "vm");
    let events = Events::of(&api);
    boot(&api, "kernel", "");
    assert_eq!(names(&events.rest()), ["started", "ready", "ended"]);
    assert_eq!(process.finish().code, 0);
}
