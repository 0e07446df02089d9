//! What the REST API has done with the balloon.

use lightv_api::contract::balloon::{BalloonStats, HintingStatus};
use lightv_devices::virtio::balloon::{Balloon, BalloonError, BalloonFacts, PAGES_PER_MIB};

use super::DeviceSet;
use super::held::Held;
use crate::orders::BalloonOrder;

/// Why the balloon did not do what it was to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BalloonOrderError {
    /// There is none.
    #[error("Device not found")]
    NoBalloon,
    /// It cannot.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
}

impl DeviceSet {
    /// Carries out `order`. No vCPU has to stand still for it: what changes of the configuration space is made of atomics.
    ///
    /// # Errors
    /// [`BalloonOrderError`]; the balloon is as it was.
    pub fn order_balloon(&mut self, order: &BalloonOrder) -> Result<(), BalloonOrderError> {
        let mut places = self.places.iter_mut();
        let found = places.find_map(|place| match &mut place.device {
            // One that is paused is idle, and goes on with what waits for it.
            Held::Balloon(balloon) => Some((
                balloon.is_active() || place.resume.is_some(),
                balloon,
                &place.interrupt,
            )),
            _ => None,
        });
        let (is_started, balloon, interrupt) = found.ok_or(BalloonOrderError::NoBalloon)?;
        if carry_out(balloon, is_started, order)? == Told::Driver {
            interrupt.signal_config();
        }
        Ok(())
    }
}

/// Who is to be told of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Driver,
    Nobody,
}

fn carry_out(
    balloon: &mut Balloon,
    is_started: bool,
    order: &BalloonOrder,
) -> Result<Told, BalloonError> {
    let ensure_started = || match is_started {
        true => Ok(()),
        false => Err(BalloonError::NotActive),
    };
    match order {
        BalloonOrder::SetAmount { mib } => {
            ensure_started()?;
            balloon.set_target(mib.saturating_mul(PAGES_PER_MIB))?;
            return Ok(Told::Driver);
        }
        BalloonOrder::SetPollingInterval { seconds } => balloon.set_polling_interval(*seconds)?,
        BalloonOrder::StartHinting {
            acknowledge_on_stop,
        } => {
            balloon.hinting_state()?;
            ensure_started()?;
            balloon.start_hinting(*acknowledge_on_stop)?;
            return Ok(Told::Driver);
        }
        BalloonOrder::StopHinting => {
            balloon.hinting_state()?;
            ensure_started()?;
            balloon.stop_hinting()?;
            return Ok(Told::Driver);
        }
        // Who asked may have gone.
        BalloonOrder::GetStats(answer) => {
            let _ = answer.send(stats(&balloon.facts()?));
        }
        BalloonOrder::GetHinting(answer) => {
            let state = balloon.hinting_state()?;
            let _ = answer.send(HintingStatus {
                host_cmd: state.host_cmd,
                guest_cmd: state.guest_cmd,
            });
        }
    }
    Ok(Told::Nobody)
}

/// By the numbers of the tags (virtio 1.2 §5.5.6.4; those from 10 on are Linux's).
fn stats(facts: &BalloonFacts) -> BalloonStats {
    let value = |tag| facts.report.get(tag);
    BalloonStats {
        target_pages: facts.target_pages,
        actual_pages: facts.actual_pages,
        target_mib: facts.target_pages / PAGES_PER_MIB,
        actual_mib: facts.actual_pages / PAGES_PER_MIB,
        swap_in: value(0),
        swap_out: value(1),
        major_faults: value(2),
        minor_faults: value(3),
        free_memory: value(4),
        total_memory: value(5),
        available_memory: value(6),
        disk_caches: value(7),
        hugetlb_allocations: value(8),
        hugetlb_failures: value(9),
        oom_kill: value(10),
        alloc_stall: value(11),
        async_scan: value(12),
        direct_scan: value(13),
        async_reclaim: value(14),
        direct_reclaim: value(15),
    }
}
