//! Many machines from one image, and images of machines that were restored.

use std::collections::BTreeSet;
use std::thread;

use lightv_api::describe::ImageDescription;
use lightv_api::exit::OK;
use lightv_tests::host::has_kvm;
use lightv_tests::machine;
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use rustix::process::Signal;

#[test]
fn twenty_clones_at_once_know_that_they_are_not_the_same() {
    if !has_kvm() {
        return;
    }
    const CLONES: usize = 20;
    let scratch = Scratch::new();
    let image = scratch.build("args", &[]);
    let bytes = scratch.read(&image);
    let run = |number: usize| {
        let number = number.to_string();
        let finished = scratch
            .run(&[
                "run",
                &image,
                "-e",
                &format!("CLONE={number}"),
                "--",
                &number,
            ])
            .with_code(OK);
        assert_eq!(finished.value("arg[0]"), number);
        assert_eq!(finished.value("env CLONE"), number);
        assert_eq!(finished.value("restores"), "1");
        finished
    };
    let clones = thread::scope(|scope| {
        let clones: Vec<_> = (0..CLONES)
            .map(|number| scope.spawn(move || run(number)))
            .collect();
        clones
            .into_iter()
            .map(|clone| clone.join().expect("a clone"))
            .collect::<Vec<_>>()
    });
    for name in ["generation", "seed"] {
        let values: BTreeSet<&str> = clones.iter().map(|clone| clone.value(name)).collect();
        assert_eq!(values.len(), CLONES, "{name}");
    }
    assert_eq!(scratch.read(&image), bytes);
}

/// Numbers in the lines `tick N`.
fn ticks(stdout: &str) -> Vec<u64> {
    let whole = stdout.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| {
            line.strip_prefix("tick ")
                .and_then(|tick| tick.parse().ok())
                .expect(line)
        })
        .collect()
}

/// Runs `lightv-vmm ARGS` until it has ticked `count` times, and saves it as `target`; gives its ticks.
fn tick_and_save(scratch: &Scratch, args: &[&str], count: usize, target: &str) -> Vec<u64> {
    let args = [args, &["--save", target, "--save-at", "signal"]].concat();
    let process = Process::start(&mut scratch.vmm(&args));
    process.wait_stdout(|text| (ticks(text).len() >= count).then_some(()));
    process.signal(Signal::USR1);
    let finished = process.finish().with_code(OK);
    assert_eq!(finished.stderr, "");
    ticks(&finished.stdout)
}

fn restores_of(scratch: &Scratch, image: &str) -> u64 {
    let found = scratch.run(&["inspect", "--json", image]).with_code(OK);
    serde_json::from_str::<ImageDescription>(&found.stdout)
        .expect("a description")
        .restores
}

/// Saves and restores a ticking machine again and again: it never stops and never loses count.
fn check_rounds(rounds: u64, vcpus: u64, image_of: impl Fn(u64) -> String) {
    let scratch = Scratch::new();
    let mut config = machine::config(&scratch.guest_kernel(), "tick");
    config["machine-config"] = serde_json::json!({"vcpu_count": vcpus});
    config["run"] = serde_json::json!({"args": ["0", "5"]});
    let config = scratch.config("vm.json", &config);
    let mut last = 0;
    for round in 0..rounds {
        let (source, target) = (image_of(round), image_of(round + 1));
        let args = if round == 0 {
            ["--config", &config]
        } else {
            ["--restore", &source]
        };
        let found = tick_and_save(&scratch, &args, 3, &target);
        let expected: Vec<u64> = (last + 1..).take(found.len()).collect();
        assert_eq!(found, expected, "round {round}");
        last += found.len() as u64;
        assert_eq!(restores_of(&scratch, &target), round);
    }
}

#[test]
fn timers_go_on_through_twenty_saves_and_restores() {
    if has_kvm() {
        check_rounds(20, 1, |round| format!("{}.lv", round % 2));
    }
}

#[test]
fn timers_go_on_with_four_vcpus() {
    if has_kvm() {
        check_rounds(10, 4, |round| format!("{}.lv", round % 2));
    }
}

#[test]
fn every_generation_of_a_chain_goes_on_from_the_one_before() {
    if has_kvm() {
        check_rounds(5, 1, |round| format!("generation-{round}.lv"));
    }
}

#[test]
fn a_machine_can_be_saved_as_the_image_that_it_was_restored_from() {
    if has_kvm() {
        check_rounds(5, 1, |_| "same.lv".to_owned());
    }
}

#[test]
fn overwriting_an_image_does_not_disturb_its_clones() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    let sibling = Process::start(&mut scratch.vmm(&["--restore", &image]));
    sibling.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    let found = tick_and_save(&scratch, &["--restore", &image], 5, &image);
    // The sibling goes on from where it stands; a new one from where the other was saved.
    let seen = ticks(&sibling.stdout()).len();
    sibling.wait_stdout(|text| (ticks(text).len() > seen + 20).then_some(()));
    let sibling = sibling.end();
    let all = ticks(&sibling.stdout);
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
    let next = found.len() + 1;
    let after = scratch
        .run(&["run", &image, "--", &(next + 2).to_string(), "1"])
        .with_code(OK);
    assert_eq!(
        ticks(&after.stdout).first(),
        Some(&(next as u64)),
        "{after:?}"
    );
}

#[test]
fn a_machine_goes_on_after_a_save_and_can_be_saved_again() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    let args = [
        "--restore",
        &image,
        "--save",
        "saved.lv",
        "--save-at",
        "signal",
        "--after-save",
        "continue",
    ];
    let process = Process::start(&mut scratch.vmm(&args));
    for round in 0..3 {
        let _ = std::fs::remove_file(scratch.path("saved.lv"));
        let seen = ticks(&process.stdout()).len();
        process.wait_stdout(|text| (ticks(text).len() > seen + 2).then_some(()));
        process.signal(Signal::USR1);
        wait_for("the image", || {
            scratch.path("saved.lv").exists().then_some(())
        });
        let seen = ticks(&process.stdout()).len();
        process.wait_stdout(|text| (ticks(text).len() > seen + 2).then_some(()));
        let limit = (seen + 1000).to_string();
        let clone = Process::start(&mut scratch.lightv(&["run", "saved.lv", "--", &limit, "1"]));
        let first = clone.wait_stdout(|text| ticks(text).first().copied());
        assert!(first <= seen as u64 + 1, "round {round}: {first} {seen}");
        assert_eq!(clone.end().code, 143);
    }
    let finished = process.end();
    let all = ticks(&finished.stdout);
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
    assert_eq!((finished.code, finished.stderr.as_str()), (143, ""));
}

#[test]
fn a_save_that_fails_does_not_end_a_machine_that_is_to_go_on() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "5"]);
    let args = [
        "--restore",
        &image,
        "--save",
        "missing/saved.lv",
        "--save-at",
        "signal",
        "--after-save",
        "continue",
    ];
    let process = Process::start(&mut scratch.vmm(&args));
    process.wait_stdout(|text| text.contains("tick 2\n").then_some(()));
    process.signal(Signal::USR1);
    process.wait_stderr(|text| text.contains("missing/saved.lv").then_some(()));
    let seen = ticks(&process.stdout()).len();
    process.wait_stdout(|text| (ticks(text).len() > seen + 5).then_some(()));
    assert_eq!(process.end().code, 143);
}

#[test]
fn clones_do_not_share_what_they_write() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // Each fills tens of MiB with its own run's work; one of the routines checks nothing, the image must not change.
    let image = scratch.build("mem", &["--", "1"]);
    let bytes = scratch.read(&image);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let finished = scratch.run(&["run", &image]).with_code(OK);
                assert_eq!(finished.stdout.lines().count(), 6, "{finished:?}");
            });
        }
    });
    assert_eq!(scratch.read(&image), bytes);
}
