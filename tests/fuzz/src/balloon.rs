//! The balloon: pages, statistics, free memory, over any ring.

use arbitrary::Result;
use lightv_devices::virtio::mmio::reg;

use crate::script::{self, Attacked, Input, bytes, low_half, number};
use crate::subjects::BalloonSubject;
use crate::support::{Machine, readable, writable};

/// Page frame numbers of one request.
const PFNS_MAX: u8 = 64;

impl Attacked for BalloonSubject {
    fn request(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        let kind: u8 = input.arbitrary()?;
        let queue = usize::from(kind % 5).min(machine.rings.len() - 1);
        let buffers = match kind % 5 {
            0 | 1 => {
                let mut pfns = Vec::new();
                for _ in 0..input.arbitrary::<u8>()? % PFNS_MAX {
                    pfns.extend_from_slice(&low_half(number(input)?).to_le_bytes());
                }
                vec![readable(
                    machine.put(&pfns),
                    u32::try_from(pfns.len()).unwrap_or(0),
                )]
            }
            2 | 3 => {
                let data = bytes(input)?;
                vec![readable(
                    machine.put(data),
                    u32::try_from(data.len()).unwrap_or(0),
                )]
            }
            _ => {
                let address = number(input)? << 12;
                vec![writable(address, low_half(number(input)?) << 12)]
            }
        };
        machine.add(queue, &buffers);
        machine.kick(queue);
        Ok(())
    }

    fn host(&mut self, machine: &mut Machine, input: &mut Input<'_>) -> Result<()> {
        // The driver tells how many pages there are.
        machine.write32(reg::CONFIG + 4, low_half(number(input)?));
        let _ = machine.take_interrupts();
        Ok(())
    }
}

/// A script.
pub fn run(input: &[u8]) {
    script::attack(&mut BalloonSubject, input);
}
