//! `cpu-config` and CPU templates: what a guest finds of them, at its boot and after a restore, and what is refused.

use std::arch::x86_64::__cpuid;
use std::fs;

use lightv_api::exit::{BAD_CONFIG, OK};
use lightv_tests::api::Api;
use lightv_tests::cpu_guest::{Answers, Moment, Question, Registers, kernel};
use lightv_tests::host::has_kvm;
use lightv_tests::process::{Finished, run};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

const FEATURES: u32 = 1;
/// IA32_MTRR_FIX64K_00000, which KVM does not list for snapshots.
const MTRR_FIX64K: u32 = 0x250;
/// All write-back but the first 64 KiB, which are uncached.
const ALL_BUT_THE_FIRST: u64 = 0x0606_0606_0606_0600;

/// CMPXCHG16B, which every host has, is hidden; the processor is another; a register has a value of its own.
fn cpu_config() -> Value {
    json!({
        "kvm_capabilities": ["9", "!56"],
        "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "eax", "bitmap": "0bxxxx_00000000_0011_xx00_0110_1111_0010"},
            {"register": "ecx", "bitmap": "0b0x_xxxx_xxxx_xxxx"},
        ]}],
        "msr_modifiers": [
            {"addr": "0x250", "bitmap": "0b0000011000000110000001100000011000000110000001100000011000000000"}
        ],
    })
}

/// A machine whose guest answers `questions`.
fn machine(scratch: &Scratch, questions: &[Question], more: &Value) -> Value {
    scratch.write("kernel", kernel(Moment::Ready, questions));
    let config = json!({"boot-source": {"kernel_image_path": "kernel"}, "machine-config": {"mem_size_mib": 16}});
    lightv_tests::machine::with(&config, more)
}

fn run_config(scratch: &Scratch, config: &Value, options: &[&str]) -> Finished {
    let config = scratch.config("vm.json", config);
    run(&mut scratch.vmm(&[&["--config", &config], options].concat()))
}

/// What the guest finds at its boot, and in a restored snapshot of it.
fn boot_and_restore(scratch: &Scratch, config: &Value) -> [Answers; 2] {
    let booted = run_config(scratch, config, &[]);
    let _ = run_config(scratch, config, &["--save", "x.lv"]).with_code(OK);
    let restored = scratch.run(&["run", "x.lv"]);
    [Answers::of(&booted), Answers::of(&restored)]
}

/// What `cpu_config` makes of the host's leaf 1.
fn changed(host: Registers) -> Registers {
    let [eax, ebx, ecx, edx] = host;
    [
        eax & !0x0fff_3fff | eax & 0x3000 | 0x306f2,
        ebx,
        ecx & !(1 << 13),
        edx,
    ]
}

#[test]
fn chosen_bits_are_changed_at_boot_and_after_a_restore_and_no_others() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let questions = [
        Question::Cpuid(FEATURES, 0),
        Question::Cpuid(7, 0),
        Question::Cpuid(0x8000_0001, 0),
        Question::Msr(MTRR_FIX64K),
    ];
    let [mut host, _] = boot_and_restore(&scratch, &machine(&scratch, &questions, &json!({})));
    let [features, more, extended] = std::array::from_fn(|_| host.registers());
    assert_ne!(features[2] & 1 << 13, 0, "the host has CMPXCHG16B");
    assert_ne!(host.msr(), ALL_BUT_THE_FIRST);
    for vcpus in [1, 2] {
        let machine_config = json!({"mem_size_mib": 16, "vcpu_count": vcpus});
        let more_config = json!({"cpu-config": cpu_config(), "machine-config": machine_config});
        let config = machine(&scratch, &questions, &more_config);
        for mut found in boot_and_restore(&scratch, &config) {
            let [_, ebx, _, edx] = features;
            let [eax, found_ebx, ecx, found_edx] = found.registers();
            if vcpus == 1 {
                assert_eq!((found_ebx, found_edx), (ebx, edx));
            }
            assert_eq!([eax, ebx, ecx, edx], changed(features));
            assert_eq!(found.registers(), more);
            assert_eq!(found.registers(), extended);
            assert_eq!(found.msr(), ALL_BUT_THE_FIRST);
        }
    }
}

#[test]
fn a_cold_start_of_an_image_has_its_cpu_too() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let questions = [Question::Msr(MTRR_FIX64K)];
    let config = machine(&scratch, &questions, &json!({"cpu-config": cpu_config()}));
    let _ = run_config(&scratch, &config, &["--save", "x.lv"]).with_code(OK);
    let finished = scratch.run(&["run", "--cold", "x.lv"]);
    assert_eq!(Answers::of(&finished).msr(), ALL_BUT_THE_FIRST);
}

#[test]
fn a_configuration_file_may_name_a_file() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let questions = [Question::Msr(MTRR_FIX64K)];
    let config = machine(&scratch, &questions, &json!({"cpu-config": "cpu.json"}));
    let refused = |words: &[&str]| {
        run_config(&scratch, &config, &[]).assert_refused(BAD_CONFIG, words);
    };
    refused(&["cpu-config", "cpu.json", "No such file"]);
    for (text, words) in [
        ("", &["cpu-config", "cpu.json", "0 bytes"][..]),
        (
            &" ".repeat((1 << 20) + 1),
            &["cpu-config", "cpu.json", "1048576"],
        ),
        ("{", &["cpu.json", "line 1 column"]),
        (
            r#"{"cpuid_modifier":[]}"#,
            &["cpu.json", "unknown field", "cpuid_modifiers"],
        ),
        (r#""cpu.json""#, &["cpu.json", "invalid type"]),
        (
            r#"{"msr_modifiers":[{"addr":"0x250","bitmap":"6"}]}"#,
            &["cpu.json", "`6` is not a bitmap"],
        ),
        (
            r#"{"msr_modifiers":[{"addr":"0x10","bitmap":"0b1"}]}"#,
            &["cpu-config.msr_modifiers[0].addr", "0x10"],
        ),
    ] {
        scratch.write("cpu.json", text);
        refused(words);
    }
    fs::remove_file(scratch.path("cpu.json")).expect("a file");
    fs::create_dir(scratch.path("cpu.json")).expect("a folder");
    refused(&["cpu.json", "regular file"]);
    fs::remove_dir(scratch.path("cpu.json")).expect("a folder");

    scratch.write("cpu.json", cpu_config().to_string());
    let _ = run_config(&scratch, &config, &["--save", "x.lv"]).with_code(OK);
    // The image has it in itself.
    fs::remove_file(scratch.path("cpu.json")).expect("a file");
    for args in [&["run", "x.lv"][..], &["run", "--cold", "x.lv"]] {
        let found = Answers::of(&scratch.run(args)).msr();
        assert_eq!(found, ALL_BUT_THE_FIRST, "{args:?}");
    }
}

#[test]
fn what_kvm_cannot_do_is_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let leaf = |leaf: &str, subleaf: &str, flags: u32, register: &str, bitmap: &str| {
        let modifiers = json!([{"register": register, "bitmap": bitmap}]);
        json!({"cpuid_modifiers": [{"leaf": leaf, "subleaf": subleaf, "flags": flags, "modifiers": modifiers}]})
    };
    let msr =
        |addr: &str, bitmap: &str| json!({"msr_modifiers": [{"addr": addr, "bitmap": bitmap}]});
    let apic_id = "0b11111111xxxxxxxxxxxxxxxxxxxxxxxx";
    for (cpu, words) in [
        (
            leaf("0x99", "0x1", 0, "eax", "0b1"),
            &["CPUID leaf 0x99 subleaf 0x1", "does not support"][..],
        ),
        (
            leaf("7", "0", 0, "ebx", "0b0"),
            &[
                "CPUID leaf 0x7 subleaf 0x0 with flags 0",
                "KVM has it with 1",
            ],
        ),
        // PCOMMIT, which no processor ever had.
        (
            leaf("7", "0", 1, "ebx", "0b1xxxxxxxxxxxxxxxxxxxxxx"),
            &[
                "bits 0x00400000 of EBX in CPUID leaf 0x7",
                "does not support",
            ],
        ),
        (
            leaf("1", "0", 0, "ebx", apic_id),
            &["bits 0xff000000 of EBX in CPUID leaf 0x1", "leave them x"],
        ),
        (
            leaf("1", "0", 0, "ecx", "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
            &["bits 0x80000000 of ECX in CPUID leaf 0x1", "leave them x"],
        ),
        (
            msr("0xdeadbeef", "0b1"),
            &["MSR 0xdeadbeef", "does not support"],
        ),
        // There is no memory type 2.
        (msr("0x250", "0b00000010"), &["MSR 0x250", "does not take"]),
        (
            json!({"kvm_capabilities": ["9999"]}),
            &["capability 9999", "cpu-config.kvm_capabilities"],
        ),
    ] {
        let config = machine(
            &scratch,
            &[Question::Msr(MTRR_FIX64K)],
            &json!({"cpu-config": cpu}),
        );
        let before = scratch.config("vm.json", &config);
        let listing = scratch.listing();
        let finished = run(&mut scratch.vmm(&["--config", &before, "--save", "x.lv"]));
        finished.assert_refused(BAD_CONFIG, words);
        scratch.assert_nothing_left(&listing);
    }
    // What is not to be looked for is not looked for.
    let unknown = json!({"cpu-config": {"kvm_capabilities": ["!9999"]}});
    let _ = run_config(
        &scratch,
        &machine(&scratch, &[Question::Msr(MTRR_FIX64K)], &unknown),
        &[],
    )
    .with_code(OK);
}

/// Software KVM: whatever a guest is told, its user code finds the host's processor, and KVM says so.
fn hides_nothing() -> bool {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    __cpuid(FEATURES).ecx & VMX == 0 && __cpuid(0x8000_0001).ecx & SVM == 0
}

/// Vendor and signature of this host's processor.
fn host_cpu() -> (String, u32) {
    let vendor = __cpuid(0);
    let bytes = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    let text = String::from_utf8_lossy(bytes.as_flattened()).into_owned();
    (text, __cpuid(FEATURES).eax)
}

#[test]
fn a_template_holds_on_its_processors_and_is_refused_elsewhere() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (vendor, signature) = host_cpu();
    for (template, signatures, shown) in [
        ("C3", &[0x5_0654, 0x5_0657, 0x6_06a6][..], 0x306e4),
        ("T2", &[0x5_0654, 0x5_0657, 0x6_06a6], 0x306f2),
        ("T2S", &[0x5_0654, 0x5_0657], 0x306f2),
        ("T2CL", &[0x5_0657, 0x6_06a6], 0x306f2),
        ("T2A", &[0xa0_0f11], 0x306f2),
    ] {
        let machine_config = json!({"mem_size_mib": 16, "cpu_template": template});
        let questions = [Question::Cpuid(FEATURES, 0), Question::Cpuid(7, 0)];
        let more = json!({"machine-config": machine_config});
        let config = machine(&scratch, &questions, &more);
        if !signatures.contains(&signature) {
            let named = format!("CPU template {template} is for ");
            run_config(&scratch, &config, &[])
                .assert_refused(BAD_CONFIG, &[&named, &vendor, "None, or a cpu-config"]);
            continue;
        }
        if hides_nothing() {
            let words = ["The CPU template changes bits ", "KVM of this host keeps"];
            run_config(&scratch, &config, &[]).assert_refused(BAD_CONFIG, &words);
            continue;
        }
        for mut found in boot_and_restore(&scratch, &config) {
            let [eax, ..] = found.registers();
            assert_eq!(eax & 0x0fff_3fff, shown, "{template}");
            // No CLWB, no UMIP.
            let [_, ebx, ecx, _] = found.registers();
            assert_eq!((ebx & 1 << 24, ecx & 1 << 2), (0, 0), "{template}");
        }
    }
}

#[test]
fn of_two_ways_to_a_cpu_a_file_has_one() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let more = json!({"machine-config": {"cpu_template": "T2A"}, "cpu-config": {}});
    run_config(
        &scratch,
        &machine(&scratch, &[Question::Msr(MTRR_FIX64K)], &more),
        &[],
    )
    .assert_refused(
        BAD_CONFIG,
        &["machine-config.cpu_template is `T2A`", "cpu-config"],
    );
}

/// A machine whose guest answers when a key is pressed, configured by requests.
fn configure(scratch: &Scratch, api: &Api) {
    let questions = [Question::Cpuid(FEATURES, 0), Question::Msr(MTRR_FIX64K)];
    scratch.write("kernel", kernel(Moment::Key, &questions));
    api.put(
        "/machine-config",
        &json!({"vcpu_count": 1, "mem_size_mib": 16}),
    );
    api.put("/boot-source", &json!({"kernel_image_path": "kernel"}));
}

fn snapshot(api: &Api, name: &str) {
    let (state, memory) = (format!("{name}.state"), format!("{name}.mem"));
    api.put(
        "/snapshot/create",
        &json!({"snapshot_path": state, "mem_file_path": memory}),
    );
}

fn load(name: &str, resume: bool) -> Value {
    let backend = json!({"backend_type": "File", "backend_path": format!("{name}.mem")});
    json!({"snapshot_path": format!("{name}.state"), "mem_backend": backend, "resume_vm": resume})
}

#[test]
fn requests_choose_a_cpu_and_snapshots_of_snapshots_keep_it() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (api, process) = Api::start(&scratch, "first", &[]);
    configure(&scratch, &api);
    let bad = json!({"msr_modifiers": [{"addr": "0xdeadbeef", "bitmap": "0b1"}]});
    api.put("/cpu-config", &bad);
    let refused = api.call("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    assert!(
        refused.fault().starts_with("Start microvm error: "),
        "{refused:?}"
    );
    assert!(refused.fault().contains("MSR 0xdeadbeef"), "{refused:?}");
    let twice = json!({"kvm_capabilities": ["9", "9"]});
    let refused = api.call("PUT", "/cpu-config", &twice);
    let expected = "Configure CPU error: cpu-config.kvm_capabilities[1] is 9";
    assert!(refused.fault().starts_with(expected), "{refused:?}");
    api.put("/cpu-config", &cpu_config());
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("listening").then_some(()));
    api.set_state("Paused");
    snapshot(&api, "a");
    let _ = process.end();

    let (api, process) = Api::start(&scratch, "second", &[]);
    api.put("/cpu-config", &json!({"kvm_capabilities": ["9"]}));
    let refused = api.call("PUT", "/snapshot/load", &load("a", false));
    assert!(
        refused
            .fault()
            .contains("cpu-config is set, to something else"),
        "{refused:?}"
    );
    api.put("/cpu-config", &cpu_config());
    api.put("/snapshot/load", &load("a", false));
    snapshot(&api, "b");
    let _ = process.end();

    let (api, process) = Api::start(&scratch, "third", &[]);
    api.put("/snapshot/load", &load("b", true));
    api.act("SendCtrlAltDel");
    let mut found = Answers::of(&process.finish());
    let [eax, _, ecx, _] = found.registers();
    assert_eq!((eax & 0x0fff_cfff, ecx & 1 << 13), (0x306f2, 0));
    assert_eq!(found.msr(), ALL_BUT_THE_FIRST);
}
