//! The device status register and its state machine (virtio 1.2 §2.1, §3.1).

/// Bits of the register.
pub mod bits {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready: the device may work.
    pub const DRIVER_OK: u8 = 4;
    /// The features are settled.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on (set by the device alone).
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// The four steps of initialisation in their order (virtio 1.2 §3.1.1).
pub(crate) const STEPS: [u8; 4] = [
    bits::ACKNOWLEDGE,
    bits::DRIVER,
    bits::FEATURES_OK,
    bits::DRIVER_OK,
];

/// What the driver has reached.
///
/// ```text
/// 0 --ACKNOWLEDGE--> 1 --DRIVER--> 3 --FEATURES_OK--> 11 --DRIVER_OK--> 15      any --FAILED--> stuck until reset
/// ```
///
/// DEVICE_NEEDS_RESET is not kept here: it belongs to [`crate::interrupt::Interrupt`], where a device sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DeviceStatus(u8);

impl DeviceStatus {
    /// The status of a saved device, if the driver can have reached it.
    pub(crate) fn from_saved(status: u8) -> Option<Self> {
        let known = STEPS.iter().fold(bits::FAILED, |all, step| all | step);
        let steps = status & !bits::FAILED;
        let is_prefix = (0..=STEPS.len())
            .any(|reached| STEPS.iter().take(reached).fold(0, |all, step| all | step) == steps);
        (status & !known == 0 && is_prefix).then_some(Self(status))
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// Whether `step`, one of [`STEPS`] or FAILED, may be set now.
    pub(crate) fn allows(self, step: u8) -> bool {
        if step == bits::FAILED {
            return true;
        }
        let before = STEPS.iter().take_while(|&&earlier| earlier != step);
        let required = before.fold(0, |all, earlier| all | earlier);
        !self.has(bits::FAILED) && self.0 == required
    }

    pub(crate) const fn set(&mut self, step: u8) {
        self.0 |= step;
    }

    /// Features are settled while the driver is known and has not yet said that they are (virtio 1.2 §3.1.1 step 4).
    pub(crate) fn allows_features(self) -> bool {
        self.allows(bits::FEATURES_OK)
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK (virtio 1.2 §3.1.1 step 7).
    pub(crate) fn allows_queues(self) -> bool {
        self.allows(bits::DRIVER_OK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_of_the_steps_are_legal() {
        let legal: Vec<u8> = (0..=u8::MAX)
            .filter(|&status| DeviceStatus::from_saved(status).is_some())
            .collect();
        assert_eq!(legal, [0, 1, 3, 11, 15, 128, 129, 131, 139, 143]);
    }

    #[test]
    fn each_status_allows_its_next_step_and_failed_only() {
        for status in [0_u8, 1, 3, 11, 15, 128, 129, 131, 139, 143] {
            let found: Vec<u8> = (0..8)
                .map(|bit| 1_u8 << bit)
                .filter(|step| STEPS.contains(step) || *step == bits::FAILED)
                .filter(|&step| DeviceStatus(status).allows(step))
                .collect();
            let next = match status {
                0 => vec![bits::ACKNOWLEDGE, bits::FAILED],
                1 => vec![bits::DRIVER, bits::FAILED],
                3 => vec![bits::FEATURES_OK, bits::FAILED],
                11 => vec![bits::DRIVER_OK, bits::FAILED],
                _ => vec![bits::FAILED],
            };
            assert_eq!(found, next, "status {status}");
        }
    }
}
