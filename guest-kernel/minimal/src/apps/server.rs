//! `http [PORT]` and `server [DISK_SEED [PORT]]`: the HTTP server, alone or with work for the disk at the same time.

use super::disk_job::DiskJob;
use super::http::{Facts, HttpServer};
use super::{Refusal, network};
use crate::blk::Disk;
use crate::machine::{Epoch, Machine};
use crate::network::Network;

const PORT: u64 = 80;
const DISK_SEED: u64 = 1;

/// `http [PORT]`.
pub fn http(machine: &mut Machine) -> Result<u8, Refusal> {
    let mut network = network(machine)?;
    let server = HttpServer::new(&mut network);
    let mut epoch = Epoch::now();
    machine.ready();
    epoch.changed();
    let port = port(machine, 0)?;
    serve(Serving {
        machine,
        network,
        server,
        epoch,
        port,
        job: None,
    })
}

/// `server [DISK_SEED [PORT]]`: never sleeps; one block for each turn of the loop.
pub fn server(machine: &mut Machine) -> Result<u8, Refusal> {
    let mut network = network(machine)?;
    let server = HttpServer::new(&mut network);
    let disk = take_disk(machine)?;
    let mut epoch = Epoch::now();
    machine.ready();
    epoch.changed();
    let job = DiskJob::new(disk, machine.number(0, DISK_SEED)?);
    let job = Some(job.ok_or(Refusal::Usage("server needs a disk of 4 KiB or more"))?);
    let port = port(machine, 1)?;
    serve(Serving {
        machine,
        network,
        server,
        epoch,
        port,
        job,
    })
}

/// The first disk.
fn take_disk(machine: &mut Machine) -> Result<&'static mut Disk, Refusal> {
    let disks = &mut machine.devices.disks;
    if disks.is_empty() {
        Err(Refusal::NoDevice("block"))
    } else {
        Ok(disks.remove(0))
    }
}

fn port(machine: &Machine, index: usize) -> Result<u16, Refusal> {
    let port = machine.number(index, PORT)?;
    u16::try_from(port)
        .ok()
        .filter(|&port| port != 0)
        .ok_or(Refusal::Usage("ports are 1-65535"))
}

struct Serving<'a> {
    machine: &'a Machine,
    network: Network,
    server: HttpServer,
    epoch: Epoch,
    port: u16,
    job: Option<DiskJob>,
}

fn serve(serving: Serving<'_>) -> Result<u8, Refusal> {
    let Serving {
        machine,
        mut network,
        mut server,
        mut epoch,
        port,
        mut job,
    } = serving;
    network.start(machine.ipv4()?);
    loop {
        if epoch.changed() {
            network.start(machine.ipv4()?);
        }
        network.poll();
        let facts = Facts {
            machine,
            disk: job.as_ref().map(DiskJob::stats),
        };
        let moved = server.serve(&mut network, port, &facts);
        if let Some(status) = server.ended(&mut network) {
            return Ok(status);
        }
        match &mut job {
            Some(job) => job.step(),
            None if moved => {}
            None => network.sleep(),
        }
    }
}
