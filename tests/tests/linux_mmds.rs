//! The metadata service as a Linux guest uses it: a driver that leaves checksums and segmentation to the card, and clients
//! that know nothing of us.

use std::fs;

use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::linux::{self, PATIENCE};
use lightv_tests::machine;
use lightv_tests::netns::Netns;
use lightv_tests::scratch::Scratch;
use serde_json::json;

/// Debian's static busybox (package `busybox-static`).
const BUSYBOX: &str = "/bin/busybox";

/// Reads the service by `nc`, which closes its side after the request, and by `wget`.
const SCRIPT: &str = r#"
b=/bin/busybox
$b mkdir -p /proc
$b mount -t proc proc /proc
$b mknod /dev/null c 1 3
$b ip link set eth0 up
$b ip addr add 10.0.0.2/24 dev eth0
$b ip route add 169.254.169.254 dev eth0
ask() { $b printf "$1\r\nConnection: close\r\n\r\n" | $b nc 169.254.169.254 80; }
token=$(ask "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 600" | $b tail -n 1)
echo "token of ${#token} letters"
echo "none: $(ask 'GET /name HTTP/1.1' | $b head -n 1)"
echo "name: $(ask "GET /name HTTP/1.1\r\nX-aws-ec2-metadata-token: $token" | $b tail -n 1)"
echo "long: $(ask "GET /long HTTP/1.1\r\nX-metadata-token: $token" | $b tail -n 1 | $b wc -c)"
for number in 1 2 3 4 5 6 7 8; do
    $b wget -q -O /wget$number --header "X-metadata-token: $token" http://169.254.169.254/long &
done
wait
echo "wget: $($b cat /wget* | $b wc -c)"
$b ping -c 1 10.0.0.1 >/dev/null && echo "ping: ok"
echo "neighbour: $($b ip neigh show 169.254.169.254)"
$b poweroff -f
"#;

#[test]
fn linux_reads_metadata_by_its_usual_clients() {
    if !has_kvm() {
        return;
    }
    let (scratch, netns) = (Scratch::new(), Netns::with_tap());
    let busybox = fs::read(BUSYBOX).expect("busybox-static is installed");
    let programs = [
        ("bin/busybox", busybox.clone()),
        ("bin/sh", busybox),
        ("bin/script", SCRIPT.into()),
    ];
    let initrd = linux::initrd_of(&scratch, &programs);
    let (api, process) = netns.within(|| Api::start(&scratch, "vm", &[]));
    api.put(
        "/boot-source",
        &json!({"kernel_image_path": linux::kernel(), "initrd_path": initrd,
            "boot_args": "console=ttyS0 panic=-1 quiet rdinit=/bin/sh -- /bin/script"}),
    );
    api.put("/network-interfaces/eth0", &machine::net()[0]);
    let mmds = json!({"network_interfaces": ["eth0"], "version": "V2"});
    api.put("/mmds/config", &mmds);
    api.put(
        "/mmds",
        &json!({"name": "vm-7", "long": "x".repeat(40_000)}),
    );
    api.act("InstanceStart");
    let finished = process.with_deadline(PATIENCE).finish().with_code(0);
    for line in [
        "token of 64 letters",
        "none: HTTP/1.1 401 Unauthorized",
        "name: vm-7",
        "long: 40000",
        "wget: 320000",
        "ping: ok",
        "neighbour: 169.254.169.254 dev eth0 lladdr 06:01:23:45:67:01",
    ] {
        assert!(finished.stdout.contains(line), "{line}: {finished:?}");
    }
}
