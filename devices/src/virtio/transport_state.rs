//! Saved form of a register front.

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;

use crate::memory::GuestMem;
use crate::virtio::device_status::{DeviceStatus, bits};
use crate::virtio::feature;
use crate::virtio::queue_state::{QueueRefused, QueueStateV1};

/// Saved virtio-mmio registers with the queues, version 1. Never edit: add `TransportStateV2` and a `From` of this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportStateV1 {
    /// Device id (virtio 1.2 §5).
    pub device_id: u32,
    /// Status, DEVICE_NEEDS_RESET included.
    pub status: u8,
    /// The device has been started and has not been reset since.
    pub is_active: bool,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// Feature bits that the driver has accepted so far.
    pub acked_features: u64,
    /// QueueSel.
    pub queue_select: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues, in index order: of an active device with the positions where it stopped.
    pub queues: Vec<QueueStateV1>,
}

/// Why a saved register front was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreTransportError {
    /// The state belongs to another device.
    #[error("Saved state is of device id {found}, not {expected}")]
    Kind {
        /// The device to be restored.
        expected: u32,
        /// What was saved.
        found: u32,
    },
    /// A status that no driver can reach.
    #[error("Saved device status {status:#x} is impossible")]
    Status {
        /// What was saved.
        status: u8,
    },
    /// Features were accepted that the device does not offer now, or without VERSION_1.
    #[error(
        "Saved features {acked:#x} are not a legal choice of those offered, {offered:#x}: what the device is connected to can do less than where it was saved (a network in user space in place of a tap, an older kernel)"
    )]
    Features {
        /// What the driver accepted.
        acked: u64,
        /// What the device offers.
        offered: u64,
    },
    /// Interrupt bits that do not exist.
    #[error("Saved interrupt status {status:#x} is impossible")]
    InterruptStatus {
        /// What was saved.
        status: u32,
    },
    /// Not the device's number of queues.
    #[error("Saved state has {found} queues, the device {expected}")]
    QueueCount {
        /// Queues of the device.
        expected: usize,
        /// Queues saved.
        found: usize,
    },
    /// A queue cannot be used.
    #[error("Saved queue {queue} cannot be used")]
    Queue {
        /// Queue index.
        queue: usize,
        /// The reason.
        #[source]
        cause: QueueRefused,
    },
    /// The positions of a queue contradict each other, or those of an unused queue are not 0.
    #[error("Saved queue {queue} stands at impossible positions {next_available} and {next_used}")]
    QueuePosition {
        /// Queue index.
        queue: usize,
        /// Of the available ring.
        next_available: u16,
        /// Of the used ring.
        next_used: u16,
    },
}

/// What a saved state is checked against.
pub(crate) struct Expected<'a> {
    pub(crate) device_id: u32,
    pub(crate) features: u64,
    pub(crate) queue_sizes: &'a [u16],
    pub(crate) mem: &'a GuestMem,
}

/// The parts of a saved state that have a form of their own.
pub(crate) struct Checked {
    pub(crate) status: DeviceStatus,
    pub(crate) needs_reset: bool,
    /// Live queues of an active device.
    pub(crate) queues: Option<Vec<Queue>>,
}

impl TransportStateV1 {
    /// Checks everything.
    pub(crate) fn check(&self, expected: &Expected<'_>) -> Result<Checked, RestoreTransportError> {
        let status = self.check_registers(expected)?;
        let needs_reset = self.status & bits::DEVICE_NEEDS_RESET != 0;
        if self.queues.len() != expected.queue_sizes.len() {
            let (expected, found) = (expected.queue_sizes.len(), self.queues.len());
            return Err(RestoreTransportError::QueueCount { expected, found });
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (state, &size_max)) in self.queues.iter().zip(expected.queue_sizes).enumerate()
        {
            self.check_position(index, state)?;
            // Of a device that is not active, rings are only what the driver wrote so far: checked when it starts.
            let state = QueueStateV1 {
                is_ready: state.is_ready && self.is_active,
                ..*state
            };
            let queue = state.to_queue(size_max, expected.mem).map_err(|cause| {
                RestoreTransportError::Queue {
                    queue: index,
                    cause,
                }
            })?;
            queues.push(queue);
        }
        Ok(Checked {
            status,
            needs_reset,
            queues: self.is_active.then_some(queues),
        })
    }

    fn check_registers(
        &self,
        expected: &Expected<'_>,
    ) -> Result<DeviceStatus, RestoreTransportError> {
        if self.device_id != expected.device_id {
            return Err(RestoreTransportError::Kind {
                expected: expected.device_id,
                found: self.device_id,
            });
        }
        let impossible = RestoreTransportError::Status {
            status: self.status,
        };
        let status = DeviceStatus::from_saved(self.status & !bits::DEVICE_NEEDS_RESET)
            .filter(|status| !self.is_active || status.has(bits::DRIVER_OK))
            .ok_or(impossible)?;
        let (acked, offered) = (self.acked_features, expected.features);
        // Before FEATURES_OK they are only what the driver wrote so far: checked when it says that they are settled.
        let is_good = acked & !offered == 0 && acked & feature::VERSION_1 != 0;
        if status.has(bits::FEATURES_OK) && !is_good {
            return Err(RestoreTransportError::Features { acked, offered });
        }
        let all = crate::interrupt::bits::USED_RING | crate::interrupt::bits::CONFIG;
        if self.interrupt_status & !all != 0 {
            let status = self.interrupt_status;
            return Err(RestoreTransportError::InterruptStatus { status });
        }
        Ok(status)
    }

    /// At most a whole queue is taken and not yet given back; a queue that never worked stands at 0.
    const fn check_position(
        &self,
        queue: usize,
        state: &QueueStateV1,
    ) -> Result<(), RestoreTransportError> {
        let QueueStateV1 {
            next_available,
            next_used,
            ..
        } = *state;
        let has_worked = self.is_active && state.is_ready;
        let is_possible = if has_worked {
            next_available.wrapping_sub(next_used) <= state.size
        } else {
            next_available == 0 && next_used == 0
        };
        if is_possible {
            Ok(())
        } else {
            Err(RestoreTransportError::QueuePosition {
                queue,
                next_available,
                next_used,
            })
        }
    }
}
