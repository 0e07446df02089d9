//! Firecracker's metrics of vsock.

use lightv_devices::counters::CountersSnapshot;
use lightv_devices::virtio::device::DeviceKind;
use serde_json::{Value, json};

use crate::device_set::DeviceMeter;

/// The group of a machine with `devices`; all zero if vsock is not among them.
pub(super) fn group(devices: &[DeviceMeter]) -> Value {
    let vsock = devices
        .iter()
        .find(|device| device.kind == DeviceKind::Vsock);
    let now = vsock.map_or_else(CountersSnapshot::default, |vsock| vsock.counters.snapshot());
    json!({
        "activate_fails": 0,
        "cfg_fails": 0,
        "rx_queue_event_fails": 0,
        "tx_queue_event_fails": now.guest_faults,
        "ev_queue_event_fails": 0,
        "muxer_event_fails": now.host_faults,
        "conn_event_fails": 0,
        "rx_queue_event_count": 0,
        "tx_queue_event_count": 0,
        "rx_bytes_count": now.bytes_to_guest,
        "tx_bytes_count": now.bytes_from_guest,
        "rx_packets_count": now.reads,
        "tx_packets_count": now.writes,
        "conns_added": now.connections_opened,
        "conns_killed": now.connections_killed,
        "conns_removed": now.connections_closed,
        "killq_resync": 0,
        "tx_flush_fails": 0,
        "tx_write_fails": 0,
        "rx_read_fails": 0,
    })
}
