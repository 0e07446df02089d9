//! From text to [`Request`], with the contract's words where it is refused.

use crate::contract::actions::ActionSpec;
use crate::contract::balloon::HintingStart;
use crate::contract::drive::{DrivePatch, DriveSpec, OverlayCall, OverlayOrder};
use crate::contract::machine::{MachinePatch, MachineSpec};
use crate::contract::mmds::{MmdsConfig, MmdsVersion};
use crate::contract::net::{NetPatch, NetSpec};
use crate::contract::pmem::{PmemPatch, PmemSpec};
use crate::contract::snapshot::{LoadParams, SnapshotLoad};
use crate::contract::vm::VmStatePatch;
use crate::contract::vsock::VsockSpec;
use crate::fault::Fault;

use super::body::{id, json_fault, read, read_with, same_id};
use super::{Call, Method, Parsed, Request};

/// The segments of a path after its first, as far as anybody looks at them: what follows is ignored.
#[derive(Clone, Copy)]
struct Rest<'a> {
    second: Option<&'a str>,
    third: Option<&'a str>,
}

pub(super) fn parse(call: Call<'_>) -> Result<Parsed, Fault> {
    let mut segments = call.path.trim_start_matches('/').split_terminator('/');
    let first = segments.next().unwrap_or_default();
    let rest = Rest {
        second: segments.next(),
        third: segments.next(),
    };
    match (call.method, call.body.is_empty()) {
        (Method::Get, true) => get(first, rest).map(plain),
        (Method::Get, false) => Err(Fault::bad("GET request cannot have a body.")),
        (Method::Put, true) => Err(Fault::bad("Empty PUT request.")),
        (Method::Put, false) => put(first, rest, call.body),
        (Method::Patch, _) => patch(first, rest, call.body),
        (Method::Delete, true) => delete(first, rest).map(plain),
        (Method::Delete, false) => Err(Fault::bad("DELETE request cannot have a body.")),
    }
}

const fn plain(request: Request) -> Parsed {
    Parsed {
        request,
        is_deprecated: false,
    }
}

fn unknown(method: Method, path: &str) -> Fault {
    let name = method.name();
    Fault::bad(format!(
        "Invalid request method and/or path: {name} {path}."
    ))
}

fn unrecognized(method: Method, segment: &str) -> Fault {
    let name = method.name();
    Fault::bad(format!("Unrecognized {name} request path `{segment}`."))
}

fn get(first: &str, rest: Rest<'_>) -> Result<Request, Fault> {
    match (first, rest.second) {
        ("", _) => Ok(Request::GetInfo),
        ("version", _) => Ok(Request::GetVersion),
        ("machine-config", _) => Ok(Request::GetMachine),
        ("vm", Some("config")) => Ok(Request::GetFullConfig),
        ("mmds", _) => Ok(Request::GetMmds),
        ("hotplug", Some("memory")) => Ok(Request::GetMemoryHotplug),
        ("metrics", _) => Ok(Request::GetPrometheus),
        ("events", _) => Ok(Request::GetEvents),
        ("balloon", None) => Ok(Request::GetBalloon),
        ("balloon", Some("statistics")) => Ok(Request::GetBalloonStats),
        ("balloon", Some("hinting")) if rest.third == Some("status") => {
            Ok(Request::GetHintingStatus)
        }
        ("balloon", Some(other)) => Err(unrecognized(Method::Get, other)),
        _ => Err(unknown(Method::Get, first)),
    }
}

fn put(first: &str, rest: Rest<'_>, body: &[u8]) -> Result<Parsed, Fault> {
    let request = match first {
        "actions" => Request::Act(read::<ActionSpec>(body)?.action_type),
        "balloon" => Request::PutBalloon(read(body)?),
        "boot-source" => Request::PutBootSource(read(body)?),
        "cpu-config" => Request::PutCpu(read(body)?),
        "entropy" => Request::PutEntropy(read(body)?),
        "logger" => Request::PutLogger(read(body)?),
        "metrics" => Request::PutMetrics(read(body)?),
        "serial" => Request::PutSerial(read(body)?),
        "fork" => Request::Fork(read(body)?),
        "drives" => put_drive(rest, body)?,
        "pmem" => put_pmem(rest, body)?,
        "network-interfaces" => put_net(rest, body)?,
        "hotplug" if rest.second == Some("memory") => Request::PutMemoryHotplug(read(body)?),
        "machine-config" => return put_machine(body),
        "mmds" => return put_mmds(rest, body),
        "snapshot" => return put_snapshot(rest, body),
        "vsock" => return put_vsock(body),
        _ => return Err(unknown(Method::Put, first)),
    };
    Ok(plain(request))
}

fn put_drive(rest: Rest<'_>, body: &[u8]) -> Result<Request, Fault> {
    let id = id(rest.second)?;
    if rest.third == Some("overlay") {
        let call: OverlayCall = read(body)?;
        let order = OverlayOrder::try_from(call).map_err(json_fault)?;
        return Ok(Request::OrderOverlay(id.to_owned(), order));
    }
    let drive: DriveSpec = read_with(body, &["is_root_device"])?;
    same_id(id, &drive.drive_id)?;
    Ok(Request::PutDrive(drive))
}

fn put_pmem(rest: Rest<'_>, body: &[u8]) -> Result<Request, Fault> {
    let id = id(rest.second)?;
    let pmem: PmemSpec = read(body)?;
    same_id(id, &pmem.id)?;
    Ok(Request::PutPmem(pmem))
}

fn put_net(rest: Rest<'_>, body: &[u8]) -> Result<Request, Fault> {
    let id = id(rest.second)?;
    let net: NetSpec = read(body)?;
    same_interface(id, &net.iface_id)?;
    Ok(Request::PutNet(net))
}

fn same_interface(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        Ok(())
    } else {
        Err(Fault::bad(format!(
            "The id from the path [{path}] does not match the id from the body [{body}]!"
        )))
    }
}

fn put_machine(body: &[u8]) -> Result<Parsed, Fault> {
    let machine: MachineSpec = read_with(body, &["vcpu_count", "mem_size_mib"])?;
    Ok(Parsed {
        is_deprecated: machine.cpu_template.is_some(),
        request: Request::PutMachine(machine),
    })
}

fn put_mmds(rest: Rest<'_>, body: &[u8]) -> Result<Parsed, Fault> {
    match rest.second {
        None => Ok(plain(Request::PutMmds(read(body)?))),
        Some("config") => {
            let config: MmdsConfig = read(body)?;
            Ok(Parsed {
                is_deprecated: config.version == MmdsVersion::V1,
                request: Request::PutMmdsConfig(config),
            })
        }
        Some(other) => Err(unrecognized(Method::Put, other)),
    }
}

fn put_snapshot(rest: Rest<'_>, body: &[u8]) -> Result<Parsed, Fault> {
    match rest.second {
        None => Err(Fault::bad("Missing snapshot operation type.")),
        Some("create") => Ok(plain(Request::CreateSnapshot(read(body)?))),
        Some("load") => {
            let load: SnapshotLoad = read(body)?;
            let is_deprecated = load.is_deprecated();
            let params = LoadParams::try_from(load).map_err(json_fault)?;
            Ok(Parsed {
                request: Request::LoadSnapshot(params),
                is_deprecated,
            })
        }
        Some(other) => Err(unknown(Method::Put, &format!("/snapshot/{other}"))),
    }
}

fn put_vsock(body: &[u8]) -> Result<Parsed, Fault> {
    let vsock: VsockSpec = read(body)?;
    Ok(Parsed {
        is_deprecated: vsock.vsock_id.is_some(),
        request: Request::PutVsock(vsock),
    })
}

fn patch(first: &str, rest: Rest<'_>, body: &[u8]) -> Result<Parsed, Fault> {
    if let ("balloon", Some("hinting")) = (first, rest.second) {
        return patch_hinting(rest, body).map(plain);
    }
    if body.is_empty() {
        return Err(Fault::bad("Empty PATCH request."));
    }
    let request = match (first, rest.second) {
        ("balloon", None) => Request::PatchBalloon(read(body)?),
        ("balloon", Some("statistics")) => Request::PatchBalloonStats(read(body)?),
        ("balloon", Some(other)) => return Err(unrecognized(Method::Patch, other)),
        ("drives", segment) => {
            let id = id(segment)?;
            let patch: DrivePatch = read(body)?;
            same_id(id, &patch.drive_id)?;
            Request::PatchDrive(patch)
        }
        ("pmem", segment) => {
            let id = id(segment)?;
            let patch: PmemPatch = read(body)?;
            same_id(id, &patch.id)?;
            Request::PatchPmem(patch)
        }
        ("network-interfaces", segment) => {
            let id = id(segment)?;
            let patch: NetPatch = read(body)?;
            same_interface(id, &patch.iface_id)?;
            Request::PatchNet(patch)
        }
        ("machine-config", _) => return patch_machine(body),
        ("mmds", _) => Request::PatchMmds(read(body)?),
        ("vm", _) => Request::PatchVm(read::<VmStatePatch>(body)?.state),
        ("hotplug", Some("memory")) => Request::PatchMemoryHotplug(read(body)?),
        _ => return Err(unknown(Method::Patch, first)),
    };
    Ok(plain(request))
}

fn patch_machine(body: &[u8]) -> Result<Parsed, Fault> {
    let patch: MachinePatch = read(body)?;
    if patch == MachinePatch::default() {
        return Err(Fault::bad("Empty PATCH request."));
    }
    Ok(Parsed {
        is_deprecated: patch.cpu_template.is_some(),
        request: Request::PatchMachine(patch),
    })
}

fn patch_hinting(rest: Rest<'_>, body: &[u8]) -> Result<Request, Fault> {
    match rest.third {
        Some("start") if body.is_empty() => Ok(Request::StartHinting(HintingStart::default())),
        Some("start") => Ok(Request::StartHinting(read(body)?)),
        Some("stop") => Ok(Request::StopHinting),
        other => Err(unrecognized(Method::Patch, other.unwrap_or("hinting"))),
    }
}

fn delete(first: &str, rest: Rest<'_>) -> Result<Request, Fault> {
    match first {
        "drives" => id(rest.second).map(|id| Request::DeleteDrive(id.to_owned())),
        "pmem" => id(rest.second).map(|id| Request::DeletePmem(id.to_owned())),
        "network-interfaces" => id(rest.second).map(|id| Request::DeleteNet(id.to_owned())),
        _ => Err(unknown(Method::Delete, first)),
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
