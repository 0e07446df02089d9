//! `cargo xtask`: the index of what one can do in this repository.

mod build;
mod cache;
mod check;
mod clients;
mod commands;
mod fuzz;
mod linux;
mod pictures;
mod prerequisites;
mod reproducible;
mod rootfs;
mod suite;
mod supply;
mod tidy;

use std::env;
use std::process::ExitCode;

use self::commands::TaskError;

/// A task: its name, what it does, and the function that does it with the remaining arguments.
struct Task {
    name: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<(), TaskError>,
}

const TASKS: &[Task] = &[
    Task {
        name: "hello",
        about: "build everything, then build and run the first microVM: `Hello, world!`",
        run: |_| build::hello(),
    },
    Task {
        name: "check",
        about: "format, clippy, tidy, supply, unit tests: what to run before every commit",
        run: |_| check::check(),
    },
    Task {
        name: "lint",
        about: "of `check`, all but the unit tests, which `test` runs too",
        run: |_| check::lint(),
    },
    Task {
        name: "tidy",
        about: "the rules of docs/architecture.md that no compiler checks",
        run: |_| tidy::tidy(),
    },
    Task {
        name: "supply",
        about: "licences, sources and doubled versions of crates, by deny.toml",
        run: |_| supply::check(),
    },
    Task {
        name: "sbom",
        about: "`sbom [FILE]`: write what is in the shipped binaries, as CycloneDX",
        run: supply::sbom,
    },
    Task {
        name: "reproducible",
        about: "build what is shipped twice, in two folders, and compare; `--profile=NAME`, packages",
        run: reproducible::reproducible,
    },
    Task {
        name: "test",
        about: "everything: unit tests, real guests, Linux guests; closes with `N passed, N failed`",
        run: |_| suite::test(),
    },
    Task {
        name: "guest",
        about: "the same as `test`",
        run: |_| suite::test(),
    },
    Task {
        name: "bench",
        about: "measure starts; arguments go to `lightv bench start`",
        run: build::bench,
    },
    Task {
        name: "golden",
        about: "write the golden files of new section versions (never of old ones)",
        run: |_| build::golden(),
    },
    Task {
        name: "rest",
        about: "write docs/openapi.json and the golden answers of the REST server anew",
        run: |_| build::rest(),
    },
    Task {
        name: "linux",
        about: "build the Linux guest kernel unless it is in the cache; prints its path",
        run: linux::linux,
    },
    Task {
        name: "rootfs",
        about: "`rootfs busybox`: build a small root file system unless it is in the cache; prints its path",
        run: rootfs::rootfs,
    },
    Task {
        name: "linux-test",
        about: "of `test`, what boots that kernel; minutes more when it has to be built",
        run: |_| suite::linux_test(),
    },
    Task {
        name: "clients",
        about: "of `test`, public clients of Firecracker against LightV's socket; minutes more when they have to be built",
        run: |_| suite::clients(),
    },
    Task {
        name: "fuzz",
        about: "every fuzz target for a minute, or TARGETs; `--seconds N`, `--replay FILE TARGET`, `--seeds`",
        run: fuzz::fuzz,
    },
    Task {
        name: "man",
        about: "write manual pages and shell completions into target/",
        run: |_| build::man(),
    },
    Task {
        name: "pictures",
        about: "make the pictures in docs/ anew, with real microVMs; needs chromium-headless-shell (LIGHTV_CHROMIUM names another)",
        run: |_| pictures::pictures(),
    },
    Task {
        name: "dist",
        about: "build what is shipped into target/dist, with its SBOM, and print its sizes",
        run: |_| build::dist(),
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let (name, rest) = match args.split_first() {
        Some((name, rest)) => (name.as_str(), rest),
        None => ("help", &[][..]),
    };
    if matches!(name, "help" | "--help" | "-h") {
        print_help();
        return ExitCode::SUCCESS;
    }
    let Some(task) = TASKS.iter().find(|task| task.name == name) else {
        eprintln!("xtask: there is no task {name}; `cargo xtask help` lists them");
        return ExitCode::from(2);
    };
    match (task.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_help() {
    println!("Usage: cargo xtask TASK\n\nTasks:");
    for Task { name, about, .. } in TASKS {
        println!("  {name:<12} {about}");
    }
}
