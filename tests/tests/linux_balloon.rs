//! The balloon as Linux drives it: statistics, what the host gets, what out of memory does, and pages that it reports free.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::linux::{PATIENCE, assert_is_well, initrd_of_source, kernel};
use lightv_tests::process::{Process, wait_within};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// For each connection to port 7 a line: `take N` has N MiB more, `drop` has none. The answer comes when it is done.
const INIT: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

int main(void)
{
	struct sockaddr_vm any = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 7 };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	char *memory = NULL;
	size_t bytes = 0;
	if (bind(fd, (struct sockaddr *)&any, sizeof any) < 0 || listen(fd, 8) < 0)
		puts("init: failed");
	puts("init: ready");
	fflush(stdout);
	for (;;) {
		char line[64] = "";
		unsigned mib;
		int client = accept(fd, NULL, NULL);
		read(client, line, sizeof line - 1);
		if (sscanf(line, "take %u", &mib) == 1) {
			bytes = (size_t)mib << 20;
			memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			/* In large pages: the emulated kernel takes a millisecond and more for each. */
			madvise(memory, bytes, MADV_HUGEPAGE);
			memset(memory, 0x5a, bytes);
		} else {
			munmap(memory, bytes);
		}
		write(client, "done\n", 5);
		close(client);
	}
}
"#;

/// Has the guest do `order`, and waits until it has.
fn tell(scratch: &Scratch, order: &str) {
    let mut stream = UnixStream::connect(scratch.path("v.sock")).expect("the guest's socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    write!(stream, "CONNECT 7\n{order}\n").expect("an order");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("done\n"), "{answer}");
}

const MIB: u64 = 1 << 20;

fn start(scratch: &Scratch, mem_mib: u64, balloon: &Value) -> (Api, Process) {
    let config = json!({
        "boot-source": {"kernel_image_path": kernel(), "initrd_path": initrd_of_source(scratch, INIT),
            "boot_args": "console=ttyS0 panic=-1"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": mem_mib},
        "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
        "balloon": balloon,
    });
    let config = scratch.config("vm.json", &config);
    let (api, process) = Api::start(scratch, "vm", &["--config", &config]);
    // Its end, too, is waited for within its life.
    let process = process.with_deadline(3 * PATIENCE);
    process.wait_stdout(|text| text.contains("init: ready").then_some(()));
    (api, process)
}

/// Waits for what an emulated kernel does with ten thousand pages.
fn wait_long<T>(what: &str, find: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, find)
}

fn statistics(api: &Api) -> Value {
    api.get("/balloon/statistics")
}

/// Bytes of memory that the process has of its own.
fn own_bytes(process: &Process) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        * 1024
}

#[test]
fn what_linux_gives_is_the_hosts_and_out_of_memory_takes_it_back() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let balloon = json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1});
    let (api, process) = start(&scratch, 64, &balloon);
    // Its own driver's words, by tags (virtio 1.2 §5.5.6.4).
    let free = wait_long("a report", || statistics(&api)["free_memory"].as_u64());
    assert!((16 * MIB..64 * MIB).contains(&free), "{free}");
    let total = statistics(&api)["total_memory"].as_u64().expect("a number");
    assert!((32 * MIB..64 * MIB).contains(&total), "{total}");

    tell(&scratch, "take 20");
    tell(&scratch, "drop");
    let before = own_bytes(&process);
    api.patch("/balloon", &json!({"amount_mib": 24}));
    wait_long("a full balloon", || {
        (statistics(&api)["actual_mib"] == 24).then_some(())
    });
    let after = own_bytes(&process);
    assert!(after + 8 * MIB < before, "{before} bytes, then {after}");

    // More than is left: the driver takes some of the balloon back, and nobody is killed.
    tell(&scratch, "take 28");
    let actual = wait_long("a report", || {
        let actual = statistics(&api)["actual_mib"].as_u64()?;
        (actual < 24).then_some(actual)
    });
    println!("the balloon has {actual} MiB of 24 left");
    assert_is_well(&process.end().stdout);
}

#[test]
fn pages_that_linux_reports_free_are_the_hosts() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let balloon = json!({"amount_mib": 0, "deflate_on_oom": false, "free_page_reporting": true});
    // Linux reports as long as 128 MiB and more are free: 32 blocks of 4 MiB above its low mark.
    let (_api, process) = start(&scratch, 256, &balloon);
    tell(&scratch, "take 32");
    let before = own_bytes(&process);
    tell(&scratch, "drop");
    // Two seconds after they have become free.
    wait_long("pages that are given back", || {
        (own_bytes(&process) + 16 * MIB < before).then_some(())
    });
    tell(&scratch, "take 32");
    assert_is_well(&process.end().stdout);
}
