//! `balloon [MIB [FREE_MIB]]`: writes MIB of memory, and gives of it what the balloon wants; writes FREE_MIB more, which are free
//! from then on, and reports them, or tells them when it is asked.

use alloc::alloc::alloc;
use core::alloc::Layout;

use virtio_drivers::Error;

use super::{Refusal, STATUS_FAILED};
use crate::balloon::{Balloon, PAGE_BYTES, PAGES_PER_REQUEST, Report};
use crate::boot::to_usize;
use crate::machine::Machine;
use crate::{eprintln, println, shim};

const MIB: usize = 1 << 20;
/// Memory begins where a large page does.
const ALIGN: usize = 2 * MIB;
/// Words of a page that are written: the first and the last.
const LAST_WORD: usize = PAGE_BYTES / size_of::<u64>() - 1;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    let (mib, free_mib) = (machine.number(0, 64)?, machine.number(1, 0)?);
    let device = machine.devices.balloon.as_mut();
    let device = device.ok_or(Refusal::NoDevice("balloon"))?;
    let mut job = Job {
        pages: memory(to_usize(mib)),
        free: memory(to_usize(free_mib)),
        inside: 0,
        reports: 0,
        ram_bytes: machine.ram_bytes as u64,
    };
    job.write_from(0);
    let free = job.free.as_chunks_mut::<PAGE_BYTES>().0;
    free.iter_mut().for_each(|page| page[0] = 1);
    println!("written {mib} {free_mib}");
    if let Some(control) = crate::control::get() {
        control.ready();
    }
    let done = job.serve(device);
    if let Err(error) = done {
        eprintln!("balloon error: {error}");
    }
    Ok(STATUS_FAILED)
}

/// Memory for good. Fails loudly when there is none.
pub(super) fn memory(mib: usize) -> &'static mut [u8] {
    if mib == 0 {
        return &mut [];
    }
    let layout = Layout::from_size_align(mib * MIB, ALIGN).expect("a size that RAM can have");
    // SAFETY: the size is not 0.
    let start = unsafe { alloc(layout) };
    assert!(!start.is_null(), "no {mib} MiB of RAM");
    // SAFETY: the heap has given `mib` MiB for good; RAM is zero or written, and any byte is a u8.
    unsafe { core::slice::from_raw_parts_mut(start, mib * MIB) }
}

struct Job {
    pages: &'static mut [u8],
    free: &'static mut [u8],
    /// Pages in the balloon: the last ones.
    inside: usize,
    reports: u64,
    ram_bytes: u64,
}

impl Job {
    fn serve(&mut self, device: &mut Balloon) -> Result<(), Error> {
        if device.has_reporting() {
            for part in self.free.chunks_mut(ALIGN) {
                device.report(part)?;
            }
            println!("reported {}", self.free.len() / MIB);
        }
        loop {
            device.acknowledge();
            let mut has_worked = self.follow(device)?;
            if device.hint_if_asked(self.free)? {
                println!("hinted {}", self.free.len() / MIB);
                has_worked = true;
            }
            let (inside, ram_bytes, reports) = (self.inside, self.ram_bytes, &mut self.reports);
            has_worked |= device.tell_stats_if_asked(|| {
                *reports += 1;
                stats(*reports, ram_bytes, inside)
            })?;
            if !has_worked {
                shim::wait();
            }
        }
    }

    /// Gives or takes pages until the balloon is as large as it is wanted, or all are in it. False if it was.
    fn follow(&mut self, device: &mut Balloon) -> Result<bool, Error> {
        let all = self.pages.len() / PAGE_BYTES;
        let wanted = device.wanted_pages().min(all);
        if wanted == self.inside {
            return Ok(false);
        }
        let start = self.pages.as_ptr() as usize;
        let address = |number: usize| start + number * PAGE_BYTES;
        while self.inside < wanted {
            let count = (wanted - self.inside).min(PAGES_PER_REQUEST);
            let end = all - self.inside;
            // From the last one down, as Linux does.
            device.inflate((end - count..end).rev().map(address))?;
            self.inside += count;
        }
        while self.inside > wanted {
            let count = (self.inside - wanted).min(PAGES_PER_REQUEST);
            let begin = all - self.inside;
            device.deflate((begin..begin + count).map(address))?;
            self.inside -= count;
            self.write_between(begin, begin + count);
        }
        device.tell_actual(self.inside)?;
        let wrong = self.wrong_pages();
        println!("inside {} wrong {wrong}", self.inside * PAGE_BYTES / MIB);
        Ok(true)
    }

    fn write_from(&mut self, first: usize) {
        self.write_between(first, self.pages.len() / PAGE_BYTES);
    }

    fn write_between(&mut self, first: usize, end: usize) {
        let pages = self.pages.as_chunks_mut::<PAGE_BYTES>().0;
        for (number, page) in pages.iter_mut().enumerate().take(end).skip(first) {
            let words = page.as_chunks_mut::<8>().0;
            for word in [0, LAST_WORD] {
                words[word] = pattern(number, word);
            }
        }
    }

    /// Pages outside the balloon that are not as they were written.
    fn wrong_pages(&self) -> usize {
        let pages = self.pages.as_chunks::<PAGE_BYTES>().0;
        let outside = pages.len() - self.inside;
        let is_wrong = |(number, page): &(usize, &[u8; PAGE_BYTES])| {
            let words = page.as_chunks::<8>().0;
            [0, LAST_WORD]
                .iter()
                .any(|&word| words[word] != pattern(*number, word))
        };
        pages
            .iter()
            .take(outside)
            .enumerate()
            .filter(is_wrong)
            .count()
    }
}

fn pattern(number: usize, word: usize) -> [u8; 8] {
    let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ word as u64).to_le_bytes()
}

/// `VIRTIO_BALLOON_S_MINFLT`: the number of the report; `_MEMFREE`; `_MEMTOT`; and one that no monitor knows.
fn stats(number: u64, ram_bytes: u64, inside: usize) -> Report {
    let taken = (inside * PAGE_BYTES) as u64;
    [
        (3, number),
        (4, ram_bytes.saturating_sub(taken)),
        (5, ram_bytes),
        (0x7fff, 1),
    ]
}
