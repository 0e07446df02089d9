//! microheart, a public client that makes taps, addresses and rules, starts Linux with an ssh server in it, and runs
//! commands there: unmodified, with a home that has LightV in it in place of Firecracker.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lightv_tests::host::{binary, has_kvm, processes_in};
use lightv_tests::linux;
use lightv_tests::netns::Netns;
use lightv_tests::process::{run, tool};
use lightv_tests::rootfs::{busybox, run_recipe};
use lightv_tests::scratch::Scratch;

/// What a run of the client takes at most: it boots Linux, perhaps on software KVM on a busy host.
const PATIENCE: Duration = Duration::from_secs(1000);

/// What is done with the client's Python API.
const PARTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/clients/python/microheart_vm.py"
);

/// Goes before all that is less urgent, where that is allowed: the client's own time limits (3 s for the first line of the
/// guest's server) are too short for a guest on software KVM that gets a part of a processor. What the client starts is
/// in sessions of its own, so `nice` would be of no use.
const URGENT: &str = "chrt --rr --pid 1 $$ || true";

/// A home for microheart, and a network for what it starts.
#[derive(Debug)]
struct Host {
    netns: Netns,
    scratch: Scratch,
    _turn: MutexGuard<'static, ()>,
}

/// One host at a time, also where tests are threads of one process: each needs the processors.
static TURN: Mutex<()> = Mutex::new(());

impl Host {
    fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = Scratch::new();
        make_home(&scratch);
        // The client asks for the default route's device, for its NAT rule.
        let netns = Netns::with_tap();
        netns.ip("route add default via 10.0.0.2");
        Self {
            netns,
            scratch,
            _turn: turn,
        }
    }

    /// Runs the lines of a shell script to its end; each must succeed. `heart` is microheart, `part` a part of our script
    /// for it. Gives what they say.
    fn run(&self, lines: &[&str]) -> String {
        let python = env::var_os("LIGHTV_CLIENTS_PYTHON");
        let python =
            python.expect("LIGHTV_CLIENTS_PYTHON is not set: run `cargo xtask linux-test`");
        let python = Path::new(&python).join("python");
        let script = format!(
            "{URGENT}\nheart() {{ {python} -m microheart \"$@\"; }}\npart() {{ {python} {PARTS} $1; }}\n{lines}\n",
            python = python.display(),
            lines = lines.join("\n"),
        );
        let mut command = self
            .scratch
            .command("unshare", &["--pid", "--fork", "--kill-child"]);
        command
            .args(["--mount-proc", "sh", "-ec", &script])
            .env("MICROHEART_HOME", self.scratch.path("home"));
        let process = self.netns.start(&mut command);
        process.with_deadline(PATIENCE).finish().with_code(0).stdout
    }

    /// Whether the client has taken everything away again.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.netns.links(), ["lo", "tap0"]);
        let rules = run_in(&self.netns, "iptables -t nat -S POSTROUTING");
        assert!(!rules.contains("MASQUERADE"), "{rules}");
        let disks = fs::read_dir(self.scratch.path("home/vms")).expect("the machines' folder");
        assert_eq!(disks.count(), 0);
        assert!(processes_in(self.scratch.folder()).is_empty());
    }
}

fn run_in(netns: &Netns, line: &str) -> String {
    netns.within(|| tool(line))
}

/// `home`: the monitor, a kernel, a disk and the key to it, under the names that the client looks for.
fn make_home(scratch: &Scratch) {
    let home = scratch.path("home");
    fs::create_dir(&home).expect("a new folder");
    fs::copy(binary("lightv-vmm"), home.join("firecracker")).expect("a copy");
    symlink(linux::kernel(), home.join("vmlinux-6.1")).expect("a free name");
    let tool = |program: &str, args: &[&str]| {
        let _ = run(&mut scratch.command(program, args)).with_code(0);
    };
    tool(
        "ssh-keygen",
        &["-q", "-t", "ed25519", "-N", "", "-f", "home/vm_key"],
    );
    make_root(scratch);
    tool(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", "root", "home/alpine.ext4", "16m"],
    );
}

/// `root`: busybox, tinysshd (small and all in one process: no other takes so little of a guest whose kernel is emulated),
/// and an init that does what microheart's own boot scripts do.
fn make_root(scratch: &Scratch) {
    let root = busybox(scratch, "root");
    run_recipe(scratch, "debian-to-tar", &["sshd.tar", "tinysshd"]);
    let _ = run(&mut scratch.command("tar", &["-xf", "sshd.tar", "-C", "root", "./usr/sbin"]))
        .with_code(0);
    // What makes the key is the server under another name, and runs here: the packages are those of this host.
    let maker = root.join("usr/sbin/tinysshd-makekey");
    let _ = run(&mut scratch.command(maker, &["root/etc/tinyssh"])).with_code(0);
    for folder in ["dev", "lib", "lib64", "proc", "root/.ssh", "sbin"] {
        fs::create_dir_all(root.join(folder)).expect("a new folder");
    }
    for (path, library) in linux::libraries() {
        fs::write(root.join(path), library).expect("a new file");
        set_mode(&root.join(path), 0o755);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/ssh_init.c");
    let init = root.join("sbin/init");
    fs::write(&init, linux::static_program(scratch, &source)).expect("a new file");
    set_mode(&init, 0o755);
    let keys = root.join("root/.ssh/authorized_keys");
    fs::copy(scratch.path("home/vm_key.pub"), &keys).expect("a copy");
    // The server uses no key that others could have written.
    set_mode(&keys, 0o600);
    set_mode(&root.join("root/.ssh"), 0o700);
    set_mode(&root.join("root"), 0o700);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn microheart_runs_a_command_in_a_machine_and_a_reboot_ends_it() {
    if !has_kvm() {
        return;
    }
    let host = Host::new();
    let said = host.run(&["heart fetch", "part life", "heart list"]);
    let lines: Vec<&str> = said.lines().collect();
    let home = host.scratch.text("home");
    assert_eq!(
        lines,
        [
            &format!("firecracker: {home}/firecracker"),
            &format!("kernel:      {home}/vmlinux-6.1"),
            "address 172.16.0.2 mh0",
            "memory 64",
            "command 'life: a  b\\n' 'error\\n' 7",
            "host 0",
            "rules 1",
            "reboot 0 False",
            "console True",
            "done",
            "no VMs",
        ],
    );
    host.assert_clean();
}

#[test]
fn microheart_fills_a_pool_and_a_job_has_a_machine_of_its_own() {
    if !has_kvm() {
        return;
    }
    let host = Host::new();
    let said = host.run(&[
        "part fill",
        "heart list",
        "part job",
        "heart pool status",
        // `pool delete` alone fails where there are machines: version 0.3.0 has no key with it for their reboot.
        "heart down --all",
        "heart pool delete warm",
    ]);
    // Columns of machines: name, pool, state, process, address; of pools: name, size, ready, booting, leased.
    let lines: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(said.lines().count(), 13, "{said}");
    assert_eq!(
        lines[..2],
        [["machine", "None"], ["machine", "None"]],
        "{said}"
    );
    for (line, address) in [(&lines[4], "172.16.0.2"), (&lines[5], "172.16.0.6")] {
        assert_eq!(line[1..3], ["warm", "ready"], "{said}");
        assert_eq!(line[4], address, "{said}");
    }
    assert_eq!(
        lines[6..8],
        [["state", "leased"], ["name", "True"]],
        "{said}"
    );
    assert_eq!(lines[10][..5], ["warm", "2", "1", "0", "0"], "{said}");
    assert!(
        said.ends_with("pool 'warm' deleted; 0 VMs removed\n"),
        "{said}"
    );
    host.assert_clean();
}
