//! `blk`: checks a disk. The blocks are those of `lightv_workloads::block`, so the host can check them too.

use lightv_workloads::block::{self, Block};
use virtio_drivers::Error;

use super::{Refusal, STATUS_FAILED, STATUS_OK};
use crate::blk::{Disk, SECTOR_BYTES};
use crate::boot::to_usize;
use crate::machine::{BadNumber, Machine};
use crate::println;

const USAGE: &str = "blk SEED [COUNT [INDEX]] | blk verify SEED [COUNT [INDEX]] | blk read-only [INDEX] | \
                     blk edge [INDEX]";
const BLOCKS: u64 = 256;
const SECTORS_PER_BLOCK: u64 = (block::BYTES / SECTOR_BYTES) as u64;

/// What is wrong with the disk.
enum DiskFault {
    Request {
        what: &'static str,
        sector: u64,
        error: Error,
    },
    Content {
        number: u64,
        fault: block::BlockFault,
    },
    /// A request that must fail did not.
    Accepted {
        what: &'static str,
        sector: u64,
    },
    /// It should be read-only.
    Writable,
    TooSmall,
}

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    machine.ready();
    let mut args = machine.args();
    let first = args.next().ok_or(Refusal::Usage(USAGE))?;
    let job: Job = match first {
        "edge" => Job::Edge,
        "read-only" => Job::ReadOnly,
        "verify" => {
            let seed = args.next().ok_or(Refusal::Usage(USAGE))?;
            Job::Verify {
                seed: number(seed)?,
                count: next_number(&mut args, BLOCKS)?,
            }
        }
        seed => Job::Write {
            seed: number(seed)?,
            count: next_number(&mut args, BLOCKS)?,
        },
    };
    let index = to_usize(next_number(&mut args, 0)?);
    let disk = machine
        .devices
        .disks
        .get_mut(index)
        .ok_or(Refusal::NoDevice("block"))?;
    let result = job.run(disk);
    Ok(report(&result, disk))
}

fn number(text: &'static str) -> Result<u64, BadNumber> {
    text.parse().map_err(|_| BadNumber(text))
}

fn next_number(
    args: &mut impl Iterator<Item = &'static str>,
    default: u64,
) -> Result<u64, BadNumber> {
    args.next().map_or(Ok(default), number)
}

fn report(result: &Result<Done, DiskFault>, disk: &mut Disk) -> u8 {
    let mut id = [0; 20];
    let id_len = disk.id(&mut id).unwrap_or(0);
    let id = core::str::from_utf8(&id[..id_len]).unwrap_or("?");
    match result {
        Ok(Done { blocks, checksum }) => {
            let capacity = disk.capacity_sectors();
            println!(
                "blk ok capacity_sectors={capacity} id={id} blocks={blocks} checksum={checksum:016x}"
            );
            return STATUS_OK;
        }
        Err(DiskFault::Request {
            what,
            sector,
            error,
        }) => {
            println!("blk error {what} sector={sector}: {error}");
        }
        Err(DiskFault::Content { number, fault }) => {
            println!("blk error content block={number}: {fault:?}");
        }
        Err(DiskFault::Accepted { what, sector }) => {
            println!("blk error {what} sector={sector}: it was accepted");
        }
        Err(DiskFault::Writable) => println!("blk error the disk is not read-only"),
        Err(DiskFault::TooSmall) => println!("blk error the disk is smaller than one block"),
    }
    STATUS_FAILED
}

enum Job {
    Write { seed: u64, count: u64 },
    Verify { seed: u64, count: u64 },
    ReadOnly,
    Edge,
}

struct Done {
    blocks: u64,
    checksum: u64,
}

impl Job {
    fn run(self, disk: &mut Disk) -> Result<Done, DiskFault> {
        let capacity = disk.capacity_sectors() / SECTORS_PER_BLOCK;
        match self {
            Self::Write { seed, count } => {
                let count = count.min(capacity);
                write_all(disk, seed, count)?;
                verify_all(disk, seed, count)
            }
            Self::Verify { seed, count } => verify_all(disk, seed, count.min(capacity)),
            Self::ReadOnly => read_only(disk),
            Self::Edge => edge(disk),
        }
    }
}

fn write_all(disk: &mut Disk, seed: u64, count: u64) -> Result<(), DiskFault> {
    let mut data: Block = [0; block::BYTES];
    for number in 0..count {
        block::fill(&mut data, seed, number);
        write(disk, number * SECTORS_PER_BLOCK, &data)?;
    }
    disk.flush().map_err(|error| DiskFault::Request {
        what: "flush",
        sector: 0,
        error,
    })
}

fn verify_all(disk: &mut Disk, seed: u64, count: u64) -> Result<Done, DiskFault> {
    let mut data: Block = [0; block::BYTES];
    let mut checksum = 0;
    for number in 0..count {
        read(disk, number * SECTORS_PER_BLOCK, &mut data)?;
        let sum = block::verify(&data, seed, number)
            .map_err(|fault| DiskFault::Content { number, fault })?;
        checksum = block::fold(checksum, sum);
    }
    Ok(Done {
        blocks: count,
        checksum,
    })
}

/// A write fails, and what was there can be read and is unchanged by the try. A disk that does not say that it is
/// read-only is left alone.
fn read_only(disk: &mut Disk) -> Result<Done, DiskFault> {
    if !disk.read_only() {
        return Err(DiskFault::Writable);
    }
    let mut before = [0; SECTOR_BYTES];
    read(disk, 0, &mut before)?;
    let changed = before.map(|byte| !byte);
    refuse("write to a read-only disk", 0, &write(disk, 0, &changed))?;
    let mut after = [0; SECTOR_BYTES];
    read(disk, 0, &mut after)?;
    if after != before {
        return Err(DiskFault::Accepted {
            what: "write to a read-only disk",
            sector: 0,
        });
    }
    Ok(Done {
        blocks: 0,
        checksum: 0,
    })
}

/// The last sector can be written and read; what lies past it cannot, not even in part.
fn edge(disk: &mut Disk) -> Result<Done, DiskFault> {
    let end = disk.capacity_sectors();
    let last = end.checked_sub(1).ok_or(DiskFault::TooSmall)?;
    let mut data = [0x5a; SECTOR_BYTES];
    write(disk, last, &data)?;
    data.fill(0);
    read(disk, last, &mut data)?;
    if data != [0x5a; SECTOR_BYTES] {
        return Err(DiskFault::Content {
            number: last,
            fault: block::BlockFault::Checksum,
        });
    }
    let mut two = [0; 2 * SECTOR_BYTES];
    refuse("read past the end", end, &read(disk, end, &mut data))?;
    refuse("write past the end", end, &write(disk, end, &data))?;
    refuse("read over the end", last, &read(disk, last, &mut two))?;
    refuse("write over the end", last, &write(disk, last, &two))?;
    Ok(Done {
        blocks: 0,
        checksum: 0,
    })
}

/// Turns around the result of a request that must fail.
fn refuse(
    what: &'static str,
    sector: u64,
    result: &Result<(), DiskFault>,
) -> Result<(), DiskFault> {
    match result {
        Ok(()) => Err(DiskFault::Accepted { what, sector }),
        Err(_) => Ok(()),
    }
}

fn read(disk: &mut Disk, sector: u64, data: &mut [u8]) -> Result<(), DiskFault> {
    disk.read(to_usize(sector), data)
        .map_err(|error| DiskFault::Request {
            what: "read",
            sector,
            error,
        })
}

fn write(disk: &mut Disk, sector: u64, data: &[u8]) -> Result<(), DiskFault> {
    disk.write(to_usize(sector), data)
        .map_err(|error| DiskFault::Request {
            what: "write",
            sector,
            error,
        })
}
