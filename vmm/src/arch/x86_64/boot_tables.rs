//! The tables by which a kernel finds processors, interrupt lines and devices: ACPI, and the MP table for kernels without
//! it. Written at boot only; a restored guest has them in its RAM.

use lightv_devices::memory::GuestMem;
use vm_memory::{Address, Bytes, GuestAddress};

use super::board::BoardFacts;
use super::generation::{self, WriteGenerationError};
use super::{acpi, layout, mptable};

/// A table and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its first byte.
    pub address: GuestAddress,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteTablesError {
    /// They are longer than the room for them; a bug in `layout`.
    #[error("Boot tables at {address:#x} have {bytes} bytes, and there is room for {room}")]
    TooLong {
        /// Where they begin.
        address: u64,
        /// Their length.
        bytes: u64,
        /// The length of what is reserved for them.
        room: u64,
    },
    /// There is no RAM.
    #[error("RAM has no room for the boot tables at {address:#x}")]
    Room {
        /// Where one was to be written.
        address: u64,
    },
    /// The generation ID could not be written.
    #[error(transparent)]
    Generation(WriteGenerationError),
}

/// Builds all tables; none is outside the room that `layout` has for it.
///
/// # Errors
/// [`WriteTablesError::TooLong`].
pub fn build(facts: &BoardFacts) -> Result<[Table; 2], WriteTablesError> {
    let mp = Table {
        address: layout::MP_TABLE,
        bytes: mptable::build(facts.vcpus),
    };
    let acpi = Table {
        address: layout::ACPI_TABLES,
        bytes: acpi::build(facts),
    };
    ensure_fits(&mp, layout::MP_TABLE_END)?;
    ensure_fits(&acpi, layout::ACPI_TABLES_END)?;
    Ok([mp, acpi])
}

/// Writes all tables and a generation ID into RAM.
///
/// # Errors
/// [`WriteTablesError`].
pub fn write(mem: &GuestMem, facts: &BoardFacts) -> Result<(), WriteTablesError> {
    for table in build(facts)? {
        mem.write_slice(&table.bytes, table.address)
            .map_err(|_| WriteTablesError::Room {
                address: table.address.raw_value(),
            })?;
    }
    generation::write_fresh(mem).map_err(WriteTablesError::Generation)
}

fn ensure_fits(table: &Table, end: u64) -> Result<(), WriteTablesError> {
    let (address, bytes) = (table.address.raw_value(), table.bytes.len() as u64);
    let room = end - address;
    if bytes <= room {
        Ok(())
    } else {
        Err(WriteTablesError::TooLong {
            address,
            bytes,
            room,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::board::MmioPlace;
    use crate::arch::x86_64::boot_params::memory_map;
    use crate::arch::x86_64::generation::GENERATION_BYTES;
    use crate::limits;
    use vm_memory::GuestMemoryMmap;

    fn facts(vcpus: u8, devices: u32) -> BoardFacts {
        let place = |n| MmioPlace {
            address: u32::try_from(layout::mmio_address(u64::from(n))).unwrap(),
            gsi: layout::DEVICE_GSIS.start() + n,
        };
        BoardFacts {
            vcpus,
            devices: (0..devices).map(place).collect(),
        }
    }

    fn every_size() -> impl Iterator<Item = BoardFacts> {
        let devices_max = u32::try_from(limits::DEVICES_MAX).unwrap();
        (1..=32).flat_map(move |vcpus| (0..=devices_max).map(move |n| facts(vcpus, n)))
    }

    #[test]
    fn no_table_overlaps_another_and_all_lie_in_reserved_memory() {
        let stretch = |address: GuestAddress, bytes: usize| (address.0, address.0 + bytes as u64);
        for facts in every_size() {
            let mut stretches: Vec<_> = build(&facts)
                .unwrap()
                .iter()
                .map(|table| stretch(table.address, table.bytes.len()))
                .collect();
            stretches.push(stretch(layout::RNG_SEED, 48));
            stretches.push(stretch(layout::GENERATION_ID, GENERATION_BYTES));
            for pair in stretches.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "{facts:?}: {stretches:x?}");
            }
            for mib in [16, 128, 3072, 4097] {
                let map = memory_map(mib << 20);
                assert_eq!(map.iter().map(|entry| entry.bytes).sum::<u64>(), mib << 20);
                for (start, end) in &stretches {
                    let holds =
                        |address: u64, bytes: u64| address <= *start && *end <= address + bytes;
                    let reserved = map
                        .iter()
                        .any(|entry| !entry.usable && holds(entry.address, entry.bytes));
                    assert!(reserved, "{start:#x}–{end:#x} with {mib} MiB");
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_what_was_built() {
        let mem: GuestMem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let facts = facts(32, 19);
        write(&mem, &facts).unwrap();
        for table in build(&facts).unwrap() {
            let mut found = vec![0; table.bytes.len()];
            mem.read_slice(&mut found, table.address).unwrap();
            assert_eq!(found, table.bytes);
        }
    }

    #[test]
    fn every_generation_id_is_another_one() {
        let mem: GuestMem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let mut seen = vec![[0_u8; GENERATION_BYTES]];
        for _ in 0..20 {
            generation::write_fresh(&mem).unwrap();
            let mut id = [0; GENERATION_BYTES];
            mem.read_slice(&mut id, layout::GENERATION_ID).unwrap();
            assert!(!seen.contains(&id));
            seen.push(id);
        }
    }

    #[test]
    fn no_ram_is_an_error_that_names_the_address() {
        let mem: GuestMem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap();
        let found = write(&mem, &facts(1, 0));
        assert!(
            matches!(found, Err(WriteTablesError::Room { address: 0x9_fc00 })),
            "{found:?}"
        );
    }
}
