//! Disks and network of a Linux guest under the programs that people measure and try them with: fio with verification on each
//! engine and on an overlay, iperf3 both ways, ping with a millisecond between packets. The network once more after a restore
//! onto another tap.
//!
//! Where KVM emulates the guest's kernel, an instruction of it takes a microsecond: so the amounts are small, and fio comes
//! without what it has for clusters of storage, whose libraries take minutes to load.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use lightv_tests::host::has_kvm;
use lightv_tests::linux::{self, PATIENCE};
use lightv_tests::netns::Netns;
use lightv_tests::process::{Finished, Process, run};
use lightv_tests::rootfs::run_recipe;
use lightv_tests::scratch::Scratch;

/// What is run in the guest, and on the host too.
const PROGRAMS: [&str; 4] = ["usr/bin/fio", "usr/bin/iperf3", "bin/ping", "bin/busybox"];
const PACKAGES: [&str; 4] = ["fio", "iperf3", "iputils-ping", "busybox-static"];
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// Where Debian has libraries, after those that are empty.
const LIBRARIES: [&str; 3] = [EMPTY, "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const EMPTY: &str = "empty";
/// Libraries of fio's engines for clusters, remote memory and persistent memory: 80 MB with all that they need.
const UNUSED: [&str; 8] = [
    "libgfapi.so.0",
    "libibverbs.so.1",
    "libnbd.so.0",
    "libpmem.so.1",
    "libpmemblk.so.1",
    "librados.so.2",
    "librbd.so.1",
    "librdmacm.so.1",
];
/// Makes libraries of those names that have all symbols which fio wants of them, in the versions that it wants, and do nothing.
const MAKE_EMPTY: &str = r#"
set -e
fio=$1 out=$2
shift 2
mkdir -p $out
nm -D --undefined-only $fio | awk '$2 ~ /^(glfs|ibv|nbd|pmem|pmemblk|rados|rbd|rdma)_/ { print $2 }' | sort -u > $out/symbols
sed 's/@.*//; s/.*/void &(void) {}/' $out/symbols > $out/empty.c
awk -F@ '$2 != "" { of[$2] = of[$2] " " $1 ";" } END { for (version in of) print version " { global:" of[version] " };" }' \
  $out/symbols > $out/empty.map
for name; do
  cc -fno-builtin -shared -nostdlib -Wl,--version-script=$out/empty.map,-soname,$name -o $out/$name $out/empty.c
done
"#;
/// Where the guest has them all.
const GUEST_LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Sent to the guest and back.
const FILE_BYTES: usize = 128 << 10;

/// The guest's program: the network before it is saved and after it is restored, then the disks.
const SCRIPT: &str = r#"
b=/bin/busybox
network() {
    host=$($b ip route | $b sed -n 's/^default via \([0-9.]*\).*/\1/p')
    echo "$1: ping of $host: $(/bin/ping -q -i 0.001 -c 200 $host | $b grep loss)"
    /usr/bin/iperf3 -c $host -t 2 --bidir > /tmp/out 2>&1
    echo "$1: iperf3 ended with $?, ways: $($b grep receiver /tmp/out | $b grep -vc ' 0.00 Bytes')"
    $b nc $host 9000 < /dev/null > /tmp/file
    echo "$1: sha256 $($b sha256sum < /tmp/file)"
    $b nc $host 9001 < /tmp/file
}
network before
$b cat /run/lightv/ready > /dev/null
network after
cd /tmp
for disk in /dev/vdb /dev/vdc /dev/vdd; do
    DISK=$disk /usr/bin/fio --minimal /jobs.fio > /tmp/out 2>&1
    echo "fio on $disk ended with $?, errors: $($b cut -d ';' -f 5 /tmp/out | $b tr '\n' ' ')"
done
"#;

/// Random writes, which are read again and compared with their checksums: through the guest's page cache, and past it.
const JOBS: &str = "
[global]
filename=${DISK}
rw=randwrite
bs=64k
size=1m
verify=crc32c
verify_fatal=1
[buffered]
ioengine=psync
[direct]
stonewall
offset=1m
direct=1
ioengine=libaio
iodepth=16
";

/// Unpacks Debian's packages into `all`, and makes the folder `root` of the programs and the libraries that they need.
fn make_root(scratch: &Scratch) {
    run_recipe(
        scratch,
        "debian-to-tar",
        &[&["all.tar"], &PACKAGES[..]].concat(),
    );
    fs::create_dir(scratch.path("all")).expect("a free name");
    let unpack = ["-C", "all", "-xf", "all.tar"];
    let _ = run(&mut scratch.command("tar", &unpack)).with_code(0);
    let names = ["-c", MAKE_EMPTY, "sh", "all/usr/bin/fio", "all/empty"];
    let _ = run(&mut scratch.command("sh", &[&names[..], &UNUSED].concat())).with_code(0);
    let (all, root) = (scratch.path("all"), scratch.path("root"));
    let copy = |from: &Path, to: &str| {
        let to = root.join(to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("to be made");
        fs::copy(from, &to).expect("to be copied");
    };
    copy(&all.join(LOADER), LOADER);
    for program in PROGRAMS {
        copy(&all.join(program), program);
        // A static program has none to list, and the loader says so.
        let listed = run(&mut host_program(&all, &["--list"], program)).stdout;
        for library in listed.split_whitespace().map(Path::new) {
            if library.starts_with(&all)
                && let Some(name) = library.file_name()
            {
                copy(library, &format!("{GUEST_LIBRARIES}/{}", name.display()));
            }
        }
    }
}

/// A program of the packages with its own libraries, whatever the host has; `loader_args` are for the loader.
fn host_program(all: &Path, loader_args: &[&str], program: &str) -> Command {
    let libraries = LIBRARIES.map(|folder| all.join(folder).display().to_string());
    let mut command = Command::new(all.join(LOADER));
    command.arg("--library-path").arg(libraries.join(":"));
    command.args(loader_args).arg(all.join(program));
    command
}

/// Gives `file` to whoever connects to port 9000, and passes on what comes to port 9001.
fn exchange(netns: &Netns, file: &[u8]) -> Receiver<Vec<u8>> {
    let listen = |port| netns.within(|| TcpListener::bind(("0.0.0.0", port)));
    let (giver, taker) = (
        listen(9000).expect("port 9000"),
        listen(9001).expect("port 9001"),
    );
    let file = file.to_vec();
    thread::spawn(move || {
        for mut stream in giver.incoming().flatten() {
            let _ = stream.write_all(&file);
        }
    });
    let (sender, received) = channel();
    thread::spawn(move || {
        for mut stream in taker.incoming().flatten() {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        }
    });
    received
}

/// Numbers that no compression finds short.
fn file() -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56).to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(FILE_BYTES).collect()
}

#[track_caller]
fn assert_network(output: &str, phase: &str, host: &str, digest: &str) {
    for line in [
        format!("{phase}: ping of {host}: 200 packets transmitted, 200 received, 0% packet loss"),
        // Both ways at a time.
        format!("{phase}: iperf3 ended with 0, ways: 2"),
        format!("{phase}: sha256 {digest}"),
    ] {
        assert!(output.contains(&line), "{line}: {output}");
    }
}

fn finish(process: Process) -> Finished {
    process.with_deadline(2 * PATIENCE).finish().with_code(0)
}

#[test]
fn fio_iperf3_and_ping_find_nothing_wrong_also_after_a_restore_onto_another_tap() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    netns.ip("link set lo up");
    netns.add_tap("tap1");
    netns.ip("addr add 10.0.1.1/24 dev tap1");
    make_root(&scratch);
    let file = file();
    scratch.write("file", &file);
    let digest = run(&mut scratch.command("busybox", &["sha256sum", "file"])).stdout;
    let digest = digest.split(' ').next().expect("a digest");
    let received = exchange(&netns, &file);
    let mut server = host_program(&scratch.path("all"), &[], "usr/bin/iperf3");
    let server = netns.start(server.arg("--server"));
    for disk in ["sync", "async", "base"] {
        scratch.write(disk, vec![0; 8 << 20]);
    }
    scratch.write("script", SCRIPT);
    scratch.write("jobs.fio", JOBS);

    let options = "build --rootfs root --copy script:/ --copy jobs.fio:/ --ready doorbell --timeout 800 \
        --net tap0,ip=10.0.0.2/24,gw=10.0.0.1 --disk sync=sync --disk async=async,engine=async,direct --disk layer=base,overlay -o io.lv \
        -- /bin/busybox sh /script";
    let options: Vec<&str> = options.split_whitespace().collect();
    let mut build = scratch.lightv(&options);
    let build = netns.start(build.env("LIGHTV_LINUX_KERNEL", linux::kernel()));
    let built = finish(build);
    assert_network(&built.stderr, "before", "10.0.0.1", digest);

    let options = ["run", "io.lv", "--net", "tap1,ip=10.0.1.2/24,gw=10.0.1.1"];
    let finished = finish(netns.start(&mut scratch.lightv(&options)));
    assert_network(&finished.stdout, "after", "10.0.1.1", digest);
    for disk in ["/dev/vdb", "/dev/vdc", "/dev/vdd"] {
        let line = format!("fio on {disk} ended with 0, errors: 0 0 \n");
        assert!(finished.stdout.contains(&line), "{line}: {finished:?}");
    }
    for phase in ["before", "after"] {
        let bytes = received.recv_timeout(PATIENCE).expect("the guest's file");
        assert!(
            bytes == file,
            "{phase}: other bytes came back: {}",
            bytes.len()
        );
    }
    drop(server);
    // What fio has written is on the disks, and of the one with an overlay in the overlay alone.
    for (disk, is_written) in [("sync", true), ("async", true), ("base", false)] {
        let has_bytes = scratch.read(disk).iter().any(|byte| *byte != 0);
        assert_eq!(has_bytes, is_written, "{disk}");
    }
}
