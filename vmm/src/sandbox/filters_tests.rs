use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

/// The list of `kind` as it is written: a rule a line of JSON, comments left out.
fn rules(kind: ThreadKind) -> BTreeSet<String> {
    let name = kind.name();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seccomp");
    let text = fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    let mut list: Value = serde_json::from_str(&text).unwrap();
    let rules = list[name]["filter"].as_array_mut().unwrap();
    rules
        .iter_mut()
        .map(|rule| {
            for condition in rule["args"].as_array_mut().into_iter().flatten() {
                condition.as_object_mut().unwrap().remove("comment");
            }
            rule.as_object_mut()
                .unwrap()
                .retain(|key, value| key != "comment" && !value.is_null());
            rule.to_string()
        })
        .collect()
}

#[test]
fn each_kind_of_thread_has_a_list_and_each_list_a_kind() {
    let kinds: BTreeSet<&str> = ThreadKind::ALL.map(ThreadKind::name).into();
    let lists: BTreeSet<&str> = COMPILED.iter().map(|(name, _)| *name).collect();
    assert_eq!(kinds, lists);
}

#[test]
fn vcpus_that_the_controller_starts_are_held_to_its_list_too() {
    let (mine, its) = (rules(ThreadKind::Vcpu), rules(ThreadKind::ApiMachine));
    let all_of = |rule: &str| {
        let rule: Value = serde_json::from_str(rule).unwrap();
        serde_json::json!({"syscall": rule["syscall"]}).to_string()
    };
    let missing: Vec<_> = mine
        .iter()
        .filter(|rule| !its.contains(*rule) && !its.contains(&all_of(rule)))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// What `program` answers to a call (seccomp(2), linux/bpf_common.h): architecture, number and arguments.
fn answer(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        _ => {
            let arg = args[usize::try_from((offset - 16) / 8).unwrap()];
            let half = if offset.is_multiple_of(8) {
                arg
            } else {
                arg >> 32
            };
            u32::try_from(half & 0xffff_ffff).unwrap()
        }
    };
    let (mut at, mut value) = (0, 0);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |is_true: bool| usize::from(if is_true { step.jt } else { step.jf });
        match step.code {
            0x20 => value = word(step.k),
            0x54 => value &= step.k,
            0x05 => at += usize::try_from(step.k).unwrap(),
            0x15 => at += jump(value == step.k),
            0x25 => at += jump(value > step.k),
            0x35 => at += jump(value >= step.k),
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

#[test]
fn what_is_compiled_and_shortened_is_what_is_written() {
    const X86_64: u32 = 0xc000_003e;
    for kind in ThreadKind::ALL {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seccomp");
        let json = fs::read(path.join(format!("{}.json", kind.name()))).unwrap();
        let Ok(Filters::On(given)) = compile(&json) else {
            panic!("{kind:?}");
        };
        assert_eq!((given.len(), given[0].0), (1, kind));
        let (long, short) = (&given[0].1, built_in(kind).unwrap());
        println!(
            "{}: {} instructions, {} as seccompiler writes it",
            kind.name(),
            short.len(),
            long.len()
        );
        assert!(short.len() < long.len());
        let words: BTreeSet<u32> = long
            .iter()
            .flat_map(|step| [step.k, step.k ^ 1, step.k | 4])
            .collect();
        for number in (0..600).chain([u32::MAX, 0x4000_0010]) {
            for word in &words {
                let args = [u64::from(*word); 6];
                for args in [args, args.map(|arg| arg | 1 << 32)] {
                    let expected = answer(long, X86_64, number, args);
                    let found = answer(short, X86_64, number, args);
                    assert_eq!(found, expected, "{kind:?}: {number} {word:#x}");
                }
            }
            let other = 0x4000_0003;
            assert_eq!(
                answer(short, other, number, [0; 6]),
                answer(long, other, number, [0; 6])
            );
        }
    }
}

#[test]
fn no_list_lets_a_thread_make_code_or_other_sockets_than_unix() {
    for kind in [
        ThreadKind::Vcpu,
        ThreadKind::Control,
        ThreadKind::Api,
        ThreadKind::ApiMachine,
        ThreadKind::Foreground,
    ] {
        for rule in rules(kind) {
            let rule: Value = serde_json::from_str(&rule).unwrap();
            let name = rule["syscall"].as_str().unwrap();
            let forbidden = [
                "execve",
                "execveat",
                "fork",
                "vfork",
                "ptrace",
                "process_vm_writev",
                "bpf",
                "mount",
                "unshare",
                "setns",
                "chroot",
                "pivot_root",
                "memfd_secret",
                "shmat",
            ];
            assert!(!forbidden.contains(&name), "{kind:?}: {name}");
            let is_bounded = rule["args"].is_array();
            let bounded = [
                "mmap", "mprotect", "socket", "ioctl", "prctl", "fcntl", "tgkill",
            ];
            assert!(!bounded.contains(&name) || is_bounded, "{kind:?}: {name}");
        }
    }
}

#[test]
fn what_is_no_list_is_refused() {
    for (json, word) in [
        ("", "JSON form"),
        ("[]", "JSON form"),
        ("{}", "no filter"),
        (
            r#"{"vcpus": {"mismatch_action": "trap", "match_action": "allow", "filter": []}}"#,
            "`vcpus`",
        ),
        (
            r#"{"vcpu": {"mismatch_action": "allow", "match_action": "allow", "filter": []}}"#,
            "JSON form",
        ),
        (
            r#"{"vcpu": {"mismatch_action": "trap", "match_action": "allow", "filter": [{"syscall": "nope"}]}}"#,
            "JSON form",
        ),
        (
            r#"{"vcpu": {"mismatch_action": "trap", "match_action": "allow", "filter": [{"syscall": "read", "args": [{"index": 6, "type": "dword", "op": "eq", "val": 1}]}]}}"#,
            "JSON form",
        ),
    ] {
        let error = compile(json.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(word), "{json}: {error}");
    }
}
