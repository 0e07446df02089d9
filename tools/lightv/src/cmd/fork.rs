//! `lightv fork`: more of a microVM that runs.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use lightv_api::config::VmSpec;
use lightv_api::contract::snapshot::{ForkSpec, SnapshotLoad, VsockOverride};
use lightv_api_client::{Client, ClientError};
use lightv_vmm::net_override::NetOverride;
use lightv_vmm::runtime_dir;

use super::show;
use super::snapshot::absolute;
use super::snapshot::load::{drive_overrides, network_overrides};
use crate::background::{Background, Started};
use crate::failure::Failure;
use crate::spec_args::Replacement;
use crate::vms::{self, VmError};

/// Start copies of a microVM that runs, from where it stands now
///
/// It stands still for some milliseconds. Each copy is a microVM of its own in the background, with random numbers of its own, and
/// serves the REST API; their ids are printed. Its disks must not be written, or have overlays in memory. A tap can only be
/// one's: name another, or `user`. The socket of vsock is called as that of the microVM, with a dot and the copy's name.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv fork web                           one copy: web-2, or the next number
  lightv fork web -n 4 --net eth0=user      four, each on a network of its own
  lightv fork web --name canary --net eth0=tap7")]
pub(crate) struct ForkArgs {
    /// Id, name of a sandbox, beginning of an id, or process id
    vm: String,
    /// How many copies: 1–64
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    count: u32,
    /// Name of the copy; with several, what their names begin with
    #[arg(long)]
    name: Option<String>,
    /// Use another tap, or a network in user space (user), for interface ID (eth0)
    ///
    /// [ID=]TAP or [ID=]user[,publish=[A:]PORT:PORT[/udp]][,host-loopback] (docs/network.md).
    #[arg(long, value_name = "[ID=]NET")]
    net: Vec<NetOverride>,
    /// Use another file for disk ID
    #[arg(long, value_name = "ID=PATH", value_parser = Replacement::disk)]
    disk: Vec<Replacement>,
}

/// Files by which copies find what they begin from; they are gone with this.
struct Passage {
    state: PathBuf,
    memory: PathBuf,
}

impl Passage {
    fn new(folder: &Path) -> Self {
        let path = |end: &str| folder.join(format!("fork-{}.{end}", std::process::id()));
        Self {
            state: path("state"),
            memory: path("memory.sock"),
        }
    }
}

impl Passage {
    /// Says of `count` copies that they do not come: frozen memory waits for nobody then.
    fn cancel(&self, count: u32) {
        // It may be gone already.
        (0..count).for_each(|_| drop(UnixStream::connect(&self.memory)));
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        // Copies have it open. The socket is the frozen microVM's to take away; of one that failed there may be none.
        let _ = fs::remove_file(&self.state);
    }
}

/// Carries it out.
pub(crate) fn run(args: &ForkArgs) -> Result<ExitCode, Failure> {
    let nets = network_overrides(&args.net)?;
    let vm = vms::find(&args.vm)?;
    let client = vms::client(&args.vm)?;
    let spec: VmSpec = client.get("/vm/config").map_err(VmError::Client)?;
    let passage = Passage::new(
        &runtime_dir::ensure_folder()
            .map_err(|error| Failure::from(crate::background::BackgroundError::Folder(error)))?,
    );
    // They are there before the microVM stands still.
    let mut copies = Vec::new();
    for number in 1..=args.count {
        match start(args, &vm.id, number) {
            Ok(copy) => copies.push(copy),
            Err(failure) => {
                copies.iter().for_each(Started::end);
                return Err(failure);
            }
        }
    }
    let load = SnapshotLoad {
        network_overrides: nets,
        drive_overrides: drive_overrides(&args.disk, &[]),
        ..SnapshotLoad::of_fork(passage.state.clone(), passage.memory.clone())
    };
    if let Err(refused) = begin(&client, &passage, (&load, &spec), &copies) {
        copies.iter().for_each(Started::end);
        passage.cancel(args.count);
        return Err(VmError::Client(refused).into());
    }
    show(|out| {
        use std::io::Write as _;
        copies
            .iter()
            .try_for_each(|copy| writeln!(out, "{}", copy.name()))
    })
}

fn start(args: &ForkArgs, id: &str, number: u32) -> Result<Started, Failure> {
    let name = args.name.as_ref().map(|name| match args.count {
        1 => name.clone(),
        _ => format!("{name}-{number}"),
    });
    let background = Background::named(name.as_deref(), Path::new(id))?;
    Ok(background.start(&[])?)
}

/// Freezes the microVM's memory, and has all copies begin from it at once.
fn begin(
    client: &Client,
    passage: &Passage,
    (load, spec): (&SnapshotLoad, &VmSpec),
    copies: &[Started],
) -> Result<(), ClientError> {
    client.put(
        "/fork",
        &ForkSpec {
            snapshot_path: passage.state.clone(),
            mem_socket_path: passage.memory.clone(),
            clones: u32::try_from(copies.len()).unwrap_or(u32::MAX),
        },
    )?;
    thread::scope(|scope| {
        let loads: Vec<_> = copies
            .iter()
            .map(|copy| {
                scope.spawn(move || {
                    let load = load_of(load, spec, copy.name());
                    copy.client().put("/snapshot/load", &load)
                })
            })
            .collect();
        loads.into_iter().try_for_each(|load| match load.join() {
            Ok(loaded) => loaded,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// `load` for the copy `name` of the machine `spec`: its socket of vsock is its own.
fn load_of(load: &SnapshotLoad, spec: &VmSpec, name: &str) -> SnapshotLoad {
    let own_socket = |path: &Path| {
        let mut own = path.as_os_str().to_owned();
        own.push(format!(".{name}"));
        VsockOverride {
            uds_path: absolute(Path::new(&own)),
        }
    };
    SnapshotLoad {
        vsock_override: spec.vsock.as_ref().map(|vsock| own_socket(&vsock.uds_path)),
        ..load.clone()
    }
}
