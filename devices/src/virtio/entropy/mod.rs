//! The entropy source (virtio 1.2 §5.4): random bytes of the host.

pub mod state;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::Queue;

pub use self::state::EntropyStateV1;

use crate::counters::Counters;
use crate::fault::{ActivateError, HostFault, HostOperation};
use crate::limiter::{Limiter, LimiterOptions};
use crate::limits::{
    ENTROPY_BYTES_PER_TURN, ENTROPY_CHUNK_BYTES, ENTROPY_QUEUE_SIZE, ENTROPY_REQUEST_BYTES_MAX,
    ENTROPY_REQUESTS_PER_TURN,
};
use crate::state::DeviceState;
use crate::sys::random;
use crate::virtio::chain::{Chain, total_bytes, write_at};
use crate::virtio::device::{Activation, DeviceKind, Progress, VirtioDevice};
use crate::virtio::feature;
use crate::virtio::ring::{Popped, Ring};

const QUEUE_SIZES: [u16; 1] = [ENTROPY_QUEUE_SIZE];

/// The entropy source.
#[derive(Debug)]
pub struct Entropy {
    id: String,
    counters: Arc<Counters>,
    limiter: Limiter,
    ring: Option<Ring>,
}

impl Entropy {
    /// An entropy source, idle.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self {
            id,
            counters: Arc::default(),
            limiter: Limiter::default(),
            ring: None,
        }
    }

    /// An entropy source as it was saved, idle.
    #[must_use]
    pub fn from_state(id: String, _state: EntropyStateV1) -> Self {
        Self::new(id)
    }

    /// Changes how many bytes and requests there may be.
    pub fn change_limits(&mut self, options: LimiterOptions) {
        self.limiter.change(options);
    }

    fn serve_turn(&mut self) -> Result<Progress, HostFault> {
        let Some(ring) = &mut self.ring else {
            return Ok(Progress::Done);
        };
        ring.pause_kicks();
        let mut bytes_left = ENTROPY_BYTES_PER_TURN;
        for _ in 0..ENTROPY_REQUESTS_PER_TURN {
            if bytes_left == 0 {
                break;
            }
            let throttled = &self.counters.throttled_from_guest;
            if self.limiter.holds_up(throttled, || ring.has_waiting()) {
                ring.notify();
                return Ok(Progress::Done);
            }
            match ring.pop() {
                Popped::Chain(chain) => {
                    let (served, outcome) = fill(ring, &chain, &self.counters);
                    self.limiter.charge(u64::from(served));
                    ring.complete(chain, served);
                    bytes_left = bytes_left.saturating_sub(served as usize);
                    if let Err(cause) = outcome {
                        self.counters.host_fault(&cause);
                        ring.notify();
                        let device = self.id.clone();
                        return Err(HostFault {
                            device,
                            operation: HostOperation::GetRandom,
                            cause,
                        });
                    }
                }
                Popped::Malformed => {}
                Popped::Empty => {
                    if !ring.resume_kicks() {
                        ring.notify();
                        return Ok(Progress::Done);
                    }
                }
            }
        }
        ring.notify();
        Ok(Progress::More)
    }
}

/// Fills the writable buffers of `chain` up to the limit of a request. Returns how many bytes they got, in any case.
fn fill(ring: &Ring, chain: &Chain, counters: &Counters) -> (u32, std::io::Result<()>) {
    let wanted = total_bytes(chain.writable());
    let wanted = usize::try_from(wanted)
        .unwrap_or(usize::MAX)
        .min(ENTROPY_REQUEST_BYTES_MAX);
    if wanted == 0 {
        counters.guest_fault();
        return (0, Ok(()));
    }
    let mut served = 0_u32;
    let mut chunk = [0; ENTROPY_CHUNK_BYTES];
    while let Some(left) = wanted.checked_sub(served as usize).filter(|&left| left > 0) {
        let part = chunk
            .get_mut(..left.min(ENTROPY_CHUNK_BYTES))
            .unwrap_or_default();
        if let Err(cause) = random::fill(part) {
            return (served, Err(cause));
        }
        if write_at(ring.mem(), chain.writable(), u64::from(served), part).is_err() {
            counters.guest_fault();
            return (served, Ok(()));
        }
        Counters::add(&counters.bytes_to_guest, part.len() as u64);
        served = served.saturating_add(u32::try_from(part.len()).unwrap_or(0));
    }
    Counters::add_one(&counters.reads);
    (served, Ok(()))
}

impl VirtioDevice for Entropy {
    fn id(&self) -> &str {
        &self.id
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        feature::COMMON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, env: Activation) -> Result<(), ActivateError> {
        ActivateError::unless_idle(&self.id, self.ring.is_some())?;
        let [ring] = env.into_rings(&self.id, &self.counters)?;
        self.ring = Some(ring);
        Ok(())
    }

    /// Requests are carried out whole within a call: none waits for the host.
    fn finish(&mut self, _gives_up: &dyn Fn() -> bool) {}

    fn deactivate(&mut self) -> Vec<Queue> {
        self.limiter.forget_wait();
        self.ring.take().map(Ring::into_queue).into_iter().collect()
    }

    fn process_queue(&mut self, index: usize) -> Result<Progress, HostFault> {
        if index == 0 {
            self.serve_turn()
        } else {
            Ok(Progress::Done)
        }
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wants_backend(&self) -> bool {
        false
    }

    fn process_backend(&mut self) -> Result<(), HostFault> {
        Ok(())
    }

    fn wake_at(&self) -> Option<Instant> {
        self.limiter.blocked_until()
    }

    fn rung(&mut self) {
        self.limiter.forget_due();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Entropy(EntropyStateV1 {})
    }
}

#[cfg(test)]
mod tests;
