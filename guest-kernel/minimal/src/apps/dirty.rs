//! `dirty [MIB [INTERVAL_MS]]`: writes MIB of memory round after round without a pause, and proves of each page before it writes
//! it that it holds what the round before has written. Says at every interval how far it is, what was wrong, and the longest time
//! in which it did not come to write.

use super::balloon::memory;
use super::{Refusal, STATUS_FAILED};
use crate::boot::to_usize;
use crate::hex::Hex;
use crate::machine::{Epoch, Machine};
use crate::{control, println, time};

const PAGE_BYTES: usize = 4096;
const NS_PER_US: u64 = 1000;
const NS_PER_MS: u64 = 1_000_000;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    time::init();
    machine.ready();
    let (mib, interval_ms) = (machine.number(0, 8)?, machine.number(1, 100)?);
    let pages = memory(to_usize(mib)).as_chunks_mut::<PAGE_BYTES>().0;
    let mut epoch = Epoch::now();
    let mut watch = Watch::new(interval_ms.saturating_mul(NS_PER_MS));
    let (mut round, mut wrong) = (0_u64, 0_u64);
    loop {
        for (number, page) in pages.iter_mut().enumerate() {
            let words = page.as_chunks_mut::<8>().0;
            for word in [0, words.len() - 1] {
                if round > 0 && words[word] != pattern(round - 1, number) {
                    wrong += 1;
                }
                words[word] = pattern(round, number);
            }
            if epoch.changed() {
                let seed = control::get().map_or([0; 32], |control| control.seed());
                println!("restored at round {round} seed {}", Hex(&seed));
                watch.begin();
            }
            if let Some(gap_us) = watch.is_due() {
                println!("round {round} wrong {wrong} gap_us {gap_us}");
            }
        }
        round += 1;
        if wrong > 0 {
            println!("round {round} wrong {wrong}");
            return Ok(STATUS_FAILED);
        }
    }
}

fn pattern(round: u64, number: usize) -> [u8; 8] {
    let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ round).to_le_bytes()
}

/// Looks at the clock at every page.
struct Watch {
    interval_ns: u64,
    next_ns: u64,
    last_ns: u64,
    gap_ns: u64,
}

impl Watch {
    fn new(interval_ns: u64) -> Self {
        let now_ns = time::now_ns();
        Self {
            interval_ns,
            next_ns: now_ns,
            last_ns: now_ns,
            gap_ns: 0,
        }
    }

    /// What was before does not count.
    fn begin(&mut self) {
        *self = Self::new(self.interval_ns);
    }

    /// Of an interval that is over, the longest gap in microseconds.
    fn is_due(&mut self) -> Option<u64> {
        let now_ns = time::now_ns();
        self.gap_ns = self.gap_ns.max(now_ns - self.last_ns);
        self.last_ns = now_ns;
        if now_ns < self.next_ns {
            return None;
        }
        self.next_ns = now_ns + self.interval_ns;
        Some(core::mem::take(&mut self.gap_ns) / NS_PER_US)
    }
}
