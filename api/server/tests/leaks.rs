//! Many clients leave nothing behind. The only test of this file: it counts what its process has.

mod common;

use std::fs;

use common::{Running, request};
use lightv_api_server::controller::Setup;
use lightv_api_server::settings::Settings;

/// Descriptors, threads, and KiB in memory.
fn usage() -> (usize, usize, usize) {
    let count = |path| fs::read_dir(path).unwrap().count();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.unwrap().trim().split(' ').next().unwrap();
    (
        count("/proc/self/fd"),
        count("/proc/self/task"),
        kib.parse().unwrap(),
    )
}

#[test]
fn two_thousand_clients_leave_nothing_behind() {
    let server = Running::new(Setup::new("leaks"), Settings::default());
    server.ask("GET", "/", "");
    let (idle_files, ..) = usage();
    let round = || {
        for number in 0..1000 {
            match number % 4 {
                0 => drop(server.connect()),
                1 => server.connect().send("GET / HT"),
                2 => server.connect().send(request("PUT", "/mmds", r#"{"a":1}"#)),
                _ => drop(server.ask("GET", "/vm/config", "")),
            }
        }
        // The server notices that clients have left when it comes to it.
        let mut asked = 0;
        while usage().0 > idle_files {
            server.ask("GET", "/", "");
            asked += 1;
            assert!(asked < 100_000, "descriptors stay open");
        }
    };
    round();
    let (_, threads, kib) = usage();
    round();
    let (_, threads_then, kib_then) = usage();
    assert_eq!(threads_then, threads);
    assert!(kib_then <= kib + 1024, "{kib_then} KiB after {kib} KiB");
}
