//! The pages that a guest writes in a run that was watched when its image was built.
//!
//! A restore gives these pages to the guest in one call each run, where a fault a page would cost twice as much
//! (docs/performance.md). A hint only: a guest that does something else takes its faults.

use lightv_devices::state::Section;
use serde::{Deserialize, Serialize};

use super::page_map::{Page, for_each_page};
use super::ram_scan::push_page;
use crate::image::manifest::MemoryRunV1;
use crate::limits;
use crate::memory::GuestRam;

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

/// Pages of RAM that are this process's own: those that were written since the restore.
///
/// # Errors
/// The kernel's, when the page map cannot be read.
pub fn written_pages(ram: &GuestRam) -> std::io::Result<WorkingSetV1> {
    let mut written = Vec::new();
    for_each_page(ram, |address, page| {
        if page == Page::Own {
            push_page(&mut written, address);
        }
    })?;
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
