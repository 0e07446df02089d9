//! The pages that a guest writes in a run that was watched when its image was built.
//!
//! A restore gives these pages to the guest in one call each run, where a fault a page would cost twice as much
//! (docs/performance.md). A hint only: a guest that does something else takes its faults.

use std::fs::File;
use std::os::unix::fs::FileExt;

use lightv_devices::state::Section;
use serde::{Deserialize, Serialize};

use crate::image::manifest::MemoryRunV1;
use crate::limits;
use crate::memory::GuestRam;
use crate::sys::mapping::PAGE_BYTES;

/// Saved working set, version 1. Never edit: add a V2.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSetV1 {
    /// Stretches of written pages, in address order.
    pub written: Vec<MemoryRunV1>,
}

impl Section for WorkingSetV1 {
    const KIND: &'static str = "working-set";
    const VERSION: u16 = 1;
}

/// Bits of a page map entry (Documentation/admin-guide/mm/pagemap.rst): present; page of a file or shared.
const PRESENT: u64 = 1 << 63;
const FILE_OR_SHARED: u64 = 1 << 61;
const ENTRY_BYTES: usize = 8;

/// Pages of RAM that are this process's own: those that were written since the restore.
///
/// # Errors
/// The kernel's, when the page map cannot be read.
pub fn written_pages(ram: &GuestRam) -> std::io::Result<WorkingSetV1> {
    let map = File::open("/proc/self/pagemap")?;
    let page_bytes = PAGE_BYTES as u64;
    let mut written: Vec<MemoryRunV1> = Vec::new();
    for part in ram.parts() {
        let mut entries = vec![0; part.mapping.bytes() / PAGE_BYTES * ENTRY_BYTES];
        let first = (part.mapping.address() / PAGE_BYTES * ENTRY_BYTES) as u64;
        map.read_exact_at(&mut entries, first)?;
        let mut address = part.base.0;
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            if entry & PRESENT != 0 && entry & FILE_OR_SHARED == 0 {
                match written.last_mut() {
                    Some(last) if last.address + last.bytes == address => last.bytes += page_bytes,
                    _ => written.push(MemoryRunV1 {
                        address,
                        bytes: page_bytes,
                    }),
                }
            }
            address += page_bytes;
        }
    }
    // A hint may leave something out: the longest stretches bring most.
    written.sort_by_key(|run| std::cmp::Reverse(run.bytes));
    written.truncate(limits::WORKING_SET_RUNS_MAX);
    let mut bytes = 0;
    written.retain(|run| {
        bytes += run.bytes;
        bytes <= limits::WORKING_SET_BYTES_MAX
    });
    written.sort_by_key(|run| run.address);
    Ok(WorkingSetV1 { written })
}
