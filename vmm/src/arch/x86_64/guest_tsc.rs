//! The time stamp counter of a guest that does not run yet, without asking KVM: each question to a vCPU takes as long as ten
//! other system calls where KVM itself runs in a virtual machine.

use kvm_ioctls::{VcpuFd, VmFd};

use super::msr;
use crate::sys::{cpu, kvm, process};

/// Readings of which the shortest counts.
const READINGS: usize = 3;
/// How far the host's counter and its clock may part, in parts per thousand, before the former is not believed: it may have
/// been set anew while the host slept.
const DRIFT_PER_MILLE: u64 = 1;
/// And in nanoseconds: what lies between reading the one and the other.
const DRIFT_NS: u64 = 100_000;

/// What the guest's counter is over the host's.
#[derive(Debug, Clone, Copy)]
pub struct GuestTsc {
    khz: u32,
    host: u64,
    guest: u64,
    monotonic_ns: u64,
}

impl GuestTsc {
    /// That of `vcpu`; `None` where it is not the host's counter and a constant, or KVM does not say so.
    #[must_use]
    pub fn of(vm: &VmFd, vcpu: &VcpuFd) -> Option<Self> {
        let khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0)?;
        if kvm::tsc_khz(vm).ok()? != khz {
            return None;
        }
        let readings = (0..READINGS).filter_map(|_| {
            let before = cpu::time_stamp();
            let guest = msr::get(vcpu, msr::TSC).ok().flatten()?;
            let took = cpu::time_stamp().wrapping_sub(before);
            Some((took, before.wrapping_add(took / 2), guest))
        });
        let (_, host, guest) = readings.min()?;
        Some(Self {
            khz,
            host,
            guest,
            monotonic_ns: process::monotonic_ns(),
        })
    }

    /// Its value now; `None` when the host's counter cannot be believed.
    #[must_use]
    pub fn now(&self) -> Option<u64> {
        let passed_ns = process::monotonic_ns().saturating_sub(self.monotonic_ns);
        self.after(cpu::time_stamp(), passed_ns)
    }

    /// Its value when the host's counter is `host`, `passed_ns` after it was read.
    fn after(&self, host: u64, passed_ns: u64) -> Option<u64> {
        let passed = host.checked_sub(self.host)?;
        let by_counter_ns = u128::from(passed) * 1_000_000 / u128::from(self.khz);
        let apart = by_counter_ns.abs_diff(u128::from(passed_ns));
        let may_be = u128::from(passed_ns / 1000 * DRIFT_PER_MILLE + DRIFT_NS);
        (apart <= may_be).then(|| self.guest.wrapping_add(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_was_set_anew_is_not_believed() {
        let tsc = GuestTsc {
            khz: 2_000_000,
            host: 1000,
            guest: 50,
            monotonic_ns: 7,
        };
        let hour_ns = 3600 * 1_000_000_000;
        for (passed, passed_ns, expected) in [
            (0, 0, Some(50)),
            (2000, 1000, Some(2050)),
            (2 * hour_ns, hour_ns, Some(50 + 2 * hour_ns)),
            // Half a second in an hour is drift, four are not.
            (
                2 * hour_ns + 1_000_000_000,
                hour_ns,
                Some(1_000_000_050 + 2 * hour_ns),
            ),
            (2 * hour_ns + 8_000_000_000, hour_ns, None),
            (0, hour_ns, None),
        ] {
            assert_eq!(tsc.after(1000 + passed, passed_ns), expected, "{passed}");
        }
        assert_eq!(tsc.after(999, 0), None);
    }
}
