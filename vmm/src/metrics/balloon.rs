//! The balloon's group of Firecracker's metrics.

use serde_json::{Value, json};

use crate::device_set::DeviceMeter;

/// Those of a machine without a balloon are there too.
pub(super) fn group(device: Option<&DeviceMeter>) -> Value {
    let counters = device.map(|device| &device.counters);
    let common = counters.map(|counters| counters.snapshot());
    let common = common.unwrap_or_default();
    let own = counters.map(|counters| counters.balloon().snapshot());
    let own = own.unwrap_or_default();
    json!({
        "activate_fails": 0,
        "inflate_count": own.inflates,
        "stats_updates_count": own.stats_updates,
        "stats_update_fails": own.stats_update_fails,
        "deflate_count": own.deflates,
        "event_fails": common.guest_faults.saturating_add(common.host_faults),
        "free_page_report_count": own.reports,
        "free_page_report_freed": own.report_bytes,
        "free_page_report_fails": own.report_fails,
        "free_page_hint_count": own.hints,
        "free_page_hint_freed": own.hint_bytes,
        "free_page_hint_fails": own.hint_fails,
    })
}
