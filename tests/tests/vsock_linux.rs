//! Sockets between a Linux guest and the host: what its driver does that the minimal guest's does not, above all with events.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use lightv_tests::api::Api;
use lightv_tests::host::has_kvm;
use lightv_tests::linux::{PATIENCE, assert_is_well, initrd_of_source, kernel};
use lightv_tests::process::{Process, wait_for};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

/// Echoes on port 7, a process for each connection; and has a connection of its own to the host's port 5000.
const INIT: &str = r#"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static void echo(int fd)
{
	static char bytes[65536];
	ssize_t length;
	while ((length = read(fd, bytes, sizeof bytes)) > 0)
		for (ssize_t at = 0, some; at < length; at += some)
			if ((some = write(fd, bytes + at, length - at)) < 0)
				_exit(1);
	close(fd);
	_exit(0);
}

static void talk(void)
{
	struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = 5000 };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	char byte;
	if (connect(fd, (struct sockaddr *)&host, sizeof host) < 0) {
		printf("init: no host: %s\n", strerror(errno));
		fflush(stdout);
		_exit(1);
	}
	write(fd, "from linux\n", 11);
	ssize_t got = read(fd, &byte, 1);
	printf("init: the host connection ended: %zd %s\n", got, got < 0 ? strerror(errno) : "");
	fflush(stdout);
	_exit(0);
}

int main(void)
{
	struct sockaddr_vm any = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 7 };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (bind(fd, (struct sockaddr *)&any, sizeof any) < 0 || listen(fd, 128) < 0)
		printf("init: failed: %s\n", strerror(errno));
	if (!fork())
		talk();
	puts("init: listening");
	fflush(stdout);
	for (;;) {
		int client = accept(fd, NULL, NULL);
		if (client >= 0 && !fork())
			echo(client);
		close(client);
	}
}
"#;

/// Connects to the guest's port 7, and checks that it echoes `bytes`.
fn try_echo(socket: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"CONNECT 7\n")?;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    assert!(line.starts_with(b"OK "), "{line:?}");
    let mut writer = stream.try_clone()?;
    let sent = bytes.to_vec();
    let writer = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed)?;
    writer.join().expect("a writer")?;
    assert_eq!(echoed.len(), bytes.len());
    assert!(echoed == bytes, "other bytes came back");
    Ok(())
}

fn start(scratch: &Scratch, name: &str) -> (Api, Process) {
    let (api, process) = Api::start(scratch, name, &[]);
    (api, process.with_deadline(PATIENCE))
}

fn load_body(path: &str) -> Value {
    let backend = json!({"backend_type": "File", "backend_path": "a.mem"});
    json!({"snapshot_path": "a.state", "mem_backend": backend, "resume_vm": true,
        "vsock_override": {"uds_path": path}})
}

#[test]
fn linux_echoes_before_and_after_restores_which_end_its_connections_and_not_its_listeners() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let service = UnixListener::bind(scratch.path("v.sock_5000")).expect("a service");
    let initrd = initrd_of_source(&scratch, INIT);
    let (api, process) = start(&scratch, "source");
    api.put("/vsock", &json!({"guest_cid": 3, "uds_path": "v.sock"}));
    let boot = json!({"kernel_image_path": kernel(), "initrd_path": initrd,
        "boot_args": "console=ttyS0 panic=-1"});
    api.put("/boot-source", &boot);
    api.act("InstanceStart");
    process.wait_stdout(|text| text.contains("init: listening").then_some(()));
    let (mut from_guest, _) = service.accept().expect("the guest");
    let mut said = [0; 11];
    from_guest.read_exact(&mut said).expect("its line");
    assert_eq!(&said, b"from linux\n");
    let bytes: Vec<u8> = (0_u32..100_000).flat_map(u32::to_le_bytes).collect();
    let socket = scratch.path("v.sock");
    try_echo(&socket, &bytes).expect("an echo");

    api.set_state("Paused");
    api.put(
        "/snapshot/create",
        &json!({"snapshot_path": "a.state", "mem_file_path": "a.mem"}),
    );
    api.set_state("Resumed");
    try_echo(&socket, &bytes).expect("an echo after the pause");
    assert!(!process.stdout().contains("connection ended"));

    for name in ["one", "two"] {
        let (clone_api, clone) = start(&scratch, name);
        let path = format!("{name}.vsock");
        clone_api.put("/snapshot/load", &load_body(&path));
        // At once: what comes early waits, and is not ended with the old ones.
        let socket = scratch.path(&path);
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| try_echo(&socket, b"early").expect("an echo"));
            }
        });
        clone.wait_stdout(|text| text.contains("the host connection ended").then_some(()));
        try_echo(&socket, &bytes).expect("an echo");
        assert_is_well(&clone.end().stdout);
        assert!(!socket.exists());
    }
    drop(from_guest);
    process.wait_stdout(|text| text.contains("connection ended: 0").then_some(()));
    wait_for("an echo", || try_echo(&socket, b"last").ok());
    assert_is_well(&process.end().stdout);
}
