//! What a start has touched, for a profile: exits by place, KVM's counters, pages of RAM.

use lightv_api::timings::{ExitsAt, PageRun, PagesTouched, Touched};
use lightv_devices::control::doorbell;

use crate::arch::host::layout;
use crate::device_set::DeviceMeter;
use crate::exits::{ExitCount, ExitKind, ExitPlace};
use crate::limits;
use crate::machine::Machine;
use crate::metrics;
use crate::snapshot::page_map;
use crate::sys::mapping::PAGE_BYTES;

/// What `machine` has touched until now; `None` unless that is counted.
#[must_use]
pub fn of(machine: &Machine) -> Option<Touched> {
    let places = machine.bus.exit_places()?;
    let devices = machine.devices.meters();
    let counters = metrics::get().machine();
    let kvm = counters.and_then(|counters| counters.kvm_counters());
    let kvm = kvm.unwrap_or_default().into_iter();
    let exits = places.counts().into_iter();
    Some(Touched {
        faults: machine.stamps.faults(),
        exits: exits.map(|exits| told(exits, &devices)).collect(),
        kvm: kvm.map(|(name, value)| (name.to_owned(), value)).collect(),
        // Without a page map nothing is known of pages.
        pages: pages(machine).ok(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "2^52 ns are weeks")]
fn told(
    ((kind, address), ExitCount { count, ns }): (ExitPlace, ExitCount),
    devices: &[DeviceMeter],
) -> ExitsAt {
    ExitsAt {
        reason: kind.name().to_owned(),
        address,
        place: address.map_or_else(String::new, |address| place_of(kind, address, devices)),
        count,
        us: ns as f64 / 1000.0,
    }
}

/// What is at an address or port.
fn place_of(kind: ExitKind, address: u64, devices: &[DeviceMeter]) -> String {
    if matches!(kind, ExitKind::IoIn | ExitKind::IoOut) {
        return port_of(address);
    }
    let control = layout::CONTROL_START..layout::CONTROL_START + layout::CONTROL_BYTES;
    if control.contains(&address) {
        return doorbell_of(address - layout::CONTROL_START);
    }
    let from_start = address.checked_sub(layout::MMIO_START);
    let device = from_start.and_then(|from_start| {
        let index = usize::try_from(from_start / layout::MMIO_BYTES).ok()?;
        Some((devices.get(index)?, from_start % layout::MMIO_BYTES))
    });
    match device {
        Some((device, offset)) => format!("{} +{offset:#x}", device.id),
        None => "no device".to_owned(),
    }
}

/// A doorbell of the control device, by its name in docs/control-device.md.
fn doorbell_of(offset: u64) -> String {
    let named = [
        (doorbell::READY, "READY"),
        (doorbell::PRINT, "PRINT"),
        (doorbell::PRINT_ERR, "PRINT_ERR"),
        (doorbell::EXIT, "EXIT"),
        (doorbell::MARK, "MARK"),
        (doorbell::CLOCK, "CLOCK"),
        (doorbell::PANIC, "PANIC"),
    ];
    let mut named = named.into_iter().filter(|(at, _)| *at as u64 == offset);
    match named.next() {
        Some((_, name)) => format!("control device {name}"),
        None => format!("control device +{offset:#x}"),
    }
}

fn port_of(port: u64) -> String {
    let (serial, i8042) = (
        u64::from(layout::SERIAL_PORT),
        u64::from(layout::I8042_PORT),
    );
    let acpi = u64::from(layout::SLEEP_CONTROL_PORT)..=u64::from(layout::EVENT_STATUS_PORT);
    let name = if (serial..serial + u64::from(layout::SERIAL_PORTS)).contains(&port) {
        "serial port"
    } else if (i8042..i8042 + u64::from(layout::I8042_PORTS)).contains(&port) {
        "keyboard controller"
    } else if acpi.contains(&port) {
        "ACPI"
    } else if port == u64::from(layout::PVPANIC_PORT) {
        "pvpanic"
    } else {
        "no device"
    };
    name.to_owned()
}

fn pages(machine: &Machine) -> std::io::Result<PagesTouched> {
    let mut touched = PagesTouched::default();
    page_map::for_each_resident(&machine.ram, |address, is_written| {
        match is_written {
            true => touched.written += 1,
            false => touched.read += 1,
        }
        push(&mut touched.runs, address, is_written);
    })?;
    // The longest tell most.
    touched.runs.sort_by_key(|run| std::cmp::Reverse(run.pages));
    touched.runs.truncate(limits::TOUCHED_RUNS_MAX);
    touched.runs.sort_by_key(|run| run.address);
    Ok(touched)
}

/// Adds the page at `address`, which lies after all of `runs`.
fn push(runs: &mut Vec<PageRun>, address: u64, is_written: bool) {
    match runs.last_mut() {
        Some(last)
            if last.is_written == is_written
                && last.address + last.pages * PAGE_BYTES as u64 == address =>
        {
            last.pages += 1;
        }
        _ => runs.push(PageRun {
            address,
            pages: 1,
            is_written,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named() {
        for (kind, address, expected) in [
            (
                ExitKind::MmioWrite,
                layout::CONTROL_START + 0x10,
                "control device +0x10",
            ),
            (
                ExitKind::MmioWrite,
                layout::CONTROL_START + doorbell::PRINT as u64,
                "control device PRINT",
            ),
            (ExitKind::MmioRead, layout::MMIO_START, "no device"),
            (ExitKind::MmioRead, 0, "no device"),
            (ExitKind::IoOut, 0x3f8, "serial port"),
            (ExitKind::IoIn, 0x64, "keyboard controller"),
            (ExitKind::IoIn, 0x602, "ACPI"),
            (ExitKind::IoOut, 0x505, "pvpanic"),
            (ExitKind::IoOut, 0x80, "no device"),
        ] {
            assert_eq!(place_of(kind, address, &[]), expected, "{address:#x}");
        }
    }

    #[test]
    fn pages_beside_each_other_are_one_run() {
        let mut runs = Vec::new();
        for (page, is_written) in [(1, true), (2, true), (3, false), (5, false)] {
            push(&mut runs, page * 4096, is_written);
        }
        let found: Vec<_> = runs.iter().map(|run| (run.address, run.pages)).collect();
        assert_eq!(found, [(4096, 2), (3 * 4096, 1), (5 * 4096, 1)]);
    }
}
