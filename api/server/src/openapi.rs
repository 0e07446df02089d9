//! The OpenAPI document: schemas from the types, paths from one table. Checked in as docs/openapi.json, which a test
//! compares with what is made here.

use lightv_api::contract::{
    actions, balloon, boot_source, cpu, drive, entropy, instance, limiter, logger, machine,
    memory_hotplug, metrics, mmds, net, pmem, serial, snapshot, tuning, vm, vsock,
};
use lightv_api::event;
use lightv_api::fault;
use lightv_api::openapi::{self, Body, refusal};
use lightv_api::request::Method;
use utoipa::OpenApi;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::{Required, ResponseBuilder};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "LightV",
        description = "The REST API of a microVM monitor: that of Firecracker, over a Unix socket. \
            What LightV adds is optional."
    ),
    components(schemas(
        actions::Action,
        actions::ActionSpec,
        balloon::BalloonPatch,
        balloon::BalloonSpec,
        balloon::BalloonStats,
        balloon::BalloonStatsPatch,
        balloon::HintingStart,
        balloon::HintingStatus,
        boot_source::BootSource,
        cpu::Bitmap,
        cpu::Capability,
        cpu::CpuSpec,
        cpu::CpuidModifier,
        cpu::CpuidRegister,
        cpu::MsrModifier,
        cpu::NumberText,
        cpu::RegisterModifier,
        drive::CacheType,
        drive::DrivePatch,
        drive::DriveSpec,
        drive::IoEngine,
        drive::OverlayAction,
        drive::OverlayCall,
        drive::OverlaySpec,
        entropy::EntropySpec,
        event::Happening,
        event::VmEvent,
        fault::FaultMessage,
        fault::TransportError,
        instance::InstanceInfo,
        instance::InstanceState,
        instance::VersionInfo,
        limiter::RateLimiter,
        limiter::TokenBucket,
        logger::LogLevel,
        logger::LoggerSpec,
        machine::CpuTemplate,
        machine::HugePages,
        machine::MachinePatch,
        machine::MachineSpec,
        memory_hotplug::MemoryHotplugPatch,
        memory_hotplug::MemoryHotplugSpec,
        memory_hotplug::MemoryHotplugStatus,
        metrics::MetricsSpec,
        mmds::MmdsConfig,
        mmds::MmdsVersion,
        net::NetPatch,
        net::NetSpec,
        net::NetworkOverride,
        net::UserNet,
        pmem::PmemPatch,
        pmem::PmemSpec,
        serial::SerialSpec,
        snapshot::DriveOverride,
        snapshot::LoadHugePages,
        snapshot::MemBackend,
        snapshot::MemBackendType,
        snapshot::ForkSpec,
        snapshot::SnapshotCreate,
        snapshot::SnapshotLoad,
        snapshot::SnapshotType,
        snapshot::VsockOverride,
        tuning::Preset,
        tuning::TuningSpec,
        vm::FullConfig,
        vm::VmState,
        vm::VmStatePatch,
        vsock::VsockSpec,
    ))
)]
struct Document;

/// One operation. Fields in order: method, path, name, what it does, body of the request, body of the answer.
type Row = (Method, &'static str, &'static str, &'static str, Body, Body);

use self::Body::{Any, None as Nothing, Of, Optional, Text};
use lightv_api::request::Method::{Delete, Get, Patch, Put};

/// Every operation: what [`lightv_api::request::Request`] can be.
#[rustfmt::skip]
const OPERATIONS: &[Row] = &[
    (Get, "/", "describeInstance", "What the machine is doing.", Nothing, Of("InstanceInfo")),
    (Put, "/actions", "createSyncAction", "Starts the machine, writes metrics, presses Ctrl-Alt-Del.", Of("ActionSpec"), Nothing),
    (Get, "/balloon", "describeBalloonConfig", "The balloon.", Nothing, Of("BalloonSpec")),
    (Put, "/balloon", "putBalloon", "Sets the balloon. Before the start.", Of("BalloonSpec"), Nothing),
    (Patch, "/balloon", "patchBalloon", "Changes the balloon's size. After the start.", Of("BalloonPatch"), Nothing),
    (Get, "/balloon/statistics", "describeBalloonStats", "What the guest told of its memory. After the start.", Nothing, Of("BalloonStats")),
    (Patch, "/balloon/statistics", "patchBalloonStatsInterval", "Changes how often the guest is asked. After the start.", Of("BalloonStatsPatch"), Nothing),
    (Patch, "/balloon/hinting/start", "startBalloonHinting", "Asks the guest which pages are free. After the start.", Optional("HintingStart"), Nothing),
    (Get, "/balloon/hinting/status", "describeBalloonHinting", "How far that has come. After the start.", Nothing, Of("HintingStatus")),
    (Patch, "/balloon/hinting/stop", "stopBalloonHinting", "Ends it. After the start.", Nothing, Nothing),
    (Put, "/boot-source", "putGuestBootSource", "Sets what is booted. Before the start.", Of("BootSource"), Nothing),
    (Put, "/cpu-config", "putCpuConfiguration", "Sets what is changed of the CPU. Before the start.", Of("CpuSpec"), Nothing),
    (Put, "/drives/{id}", "putGuestDriveByID", "Adds or replaces a disk. Before the start.", Of("DriveSpec"), Nothing),
    (Patch, "/drives/{id}", "patchGuestDriveByID", "Changes a disk's file or limits. After the start.", Of("DrivePatch"), Nothing),
    (Delete, "/drives/{id}", "deleteGuestDriveByID", "Unplugs a disk. After the start, on PCI. This version refuses it.", Nothing, Nothing),
    (Put, "/drives/{id}/overlay", "putDriveOverlay", "LightV's own: resets the overlay of a disk, or exports the disk. After the start.", Of("OverlayCall"), Nothing),
    (Put, "/entropy", "putEntropyDevice", "Gives the guest random bytes. Before the start.", Of("EntropySpec"), Nothing),
    (Get, "/events", "getEvents", "LightV's own: what happens, as server-sent events; the data of each is a VmEvent.", Nothing, Text("text/event-stream")),
    (Get, "/hotplug/memory", "getMemoryHotplug", "How much memory is plugged. After the start. This version refuses it.", Nothing, Of("MemoryHotplugStatus")),
    (Put, "/hotplug/memory", "putMemoryHotplug", "Sets memory that can be plugged. Before the start. This version refuses it.", Of("MemoryHotplugSpec"), Nothing),
    (Patch, "/hotplug/memory", "patchMemoryHotplug", "Changes how much is plugged. After the start. This version refuses it.", Of("MemoryHotplugPatch"), Nothing),
    (Put, "/logger", "putLogger", "Sets what is logged, and where. Before the start.", Of("LoggerSpec"), Nothing),
    (Put, "/fork", "fork", "LightV's own: lets other machines begin from where this one stands, which goes on.", Of("ForkSpec"), Nothing),
    (Get, "/machine-config", "getMachineConfiguration", "CPUs and memory.", Nothing, Of("MachineSpec")),
    (Put, "/machine-config", "putMachineConfiguration", "Sets CPUs and memory. Before the start.", Of("MachineSpec"), Nothing),
    (Patch, "/machine-config", "patchMachineConfiguration", "Changes some of that. Before the start.", Of("MachinePatch"), Nothing),
    (Get, "/metrics", "getMetrics", "LightV's own: metrics in Prometheus' text form.", Nothing, Text("application/openmetrics-text")),
    (Put, "/metrics", "putMetrics", "Sets where metrics are written. Before the start, once.", Of("MetricsSpec"), Nothing),
    (Get, "/mmds", "getMmds", "What the metadata store holds.", Nothing, Any),
    (Put, "/mmds", "putMmds", "Fills the metadata store.", Any, Nothing),
    (Patch, "/mmds", "patchMmds", "Changes it by JSON merge patch (RFC 7396).", Any, Nothing),
    (Put, "/mmds/config", "putMmdsConfig", "Sets how guests reach it. Before the start.", Of("MmdsConfig"), Nothing),
    (Put, "/network-interfaces/{id}", "putGuestNetworkInterfaceByID", "Adds or replaces an interface. Before the start.", Of("NetSpec"), Nothing),
    (Patch, "/network-interfaces/{id}", "patchGuestNetworkInterfaceByID", "Changes an interface's limits. After the start.", Of("NetPatch"), Nothing),
    (Delete, "/network-interfaces/{id}", "deleteGuestNetworkInterfaceByID", "Unplugs an interface. After the start, on PCI. This version refuses it.", Nothing, Nothing),
    (Put, "/pmem/{id}", "putGuestPmemByID", "Adds or replaces persistent memory. Before the start. This version refuses it.", Of("PmemSpec"), Nothing),
    (Patch, "/pmem/{id}", "patchGuestPmemByID", "Changes its limits. After the start. This version refuses it.", Of("PmemPatch"), Nothing),
    (Delete, "/pmem/{id}", "deleteGuestPmemByID", "Unplugs it. After the start, on PCI. This version refuses it.", Nothing, Nothing),
    (Put, "/serial", "putSerialDevice", "Sets where the serial port goes. Before the start.", Of("SerialSpec"), Nothing),
    (Put, "/snapshot/create", "createSnapshot", "Saves the machine. While it is paused, or, if `live`, while it runs.", Of("SnapshotCreate"), Nothing),
    (Put, "/snapshot/load", "loadSnapshot", "Restores a machine. Before the start, before anything is configured for a boot.", Of("SnapshotLoad"), Nothing),
    (Get, "/version", "getFirecrackerVersion", "Versions.", Nothing, Of("VersionInfo")),
    (Patch, "/vm", "patchVm", "Pauses or resumes the machine. After the start.", Of("VmStatePatch"), Nothing),
    (Get, "/vm/config", "getExportVmConfig", "What was configured: `logger`, `metrics` and `cpu-config` until the start.", Nothing, Of("FullConfig")),
    (Put, "/vsock", "putGuestVsock", "Gives the guest sockets to the host. Before the start.", Of("VsockSpec"), Nothing),
];

/// The document as JSON, as it is checked in.
///
/// # Errors
/// Never, but for a bug in us: texts, numbers and lists of them are always JSON.
pub fn document() -> Result<String, serde_json::Error> {
    let mut document = Document::openapi();
    document.info.contact = None;
    for row in OPERATIONS {
        let method = match row.0 {
            Method::Get => HttpMethod::Get,
            Method::Put => HttpMethod::Put,
            Method::Patch => HttpMethod::Patch,
            Method::Delete => HttpMethod::Delete,
        };
        openapi::add(&mut document, row.1, method, operation(row));
    }
    openapi::text(&document)
}

fn operation((_, path, name, about, body, answer): &Row) -> Operation {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(*name))
        .summary(Some(*about));
    if path.contains("{id}") {
        let id = ParameterBuilder::new()
            .name("id")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(
                "1–64 letters, digits and `_`; the same as in the body",
            ))
            .schema(Some(Object::with_type(Type::String)))
            .build();
        operation = operation.parameter(id);
    }
    if let Some(request) = body.of_request() {
        operation = operation.request_body(Some(request));
    }
    let (status, granted) = match answer.content() {
        Some((content_type, content)) => {
            let response = ResponseBuilder::new().description("Granted.");
            ("200", response.content(content_type, content))
        }
        None => ("204", ResponseBuilder::new().description("Done.")),
    };
    operation = operation
        .response(status, granted.build())
        .response("400", refusal("Refused; nothing has changed."));
    if *path == "/mmds" && !matches!(body, Body::None) {
        operation = operation.response("413", refusal("The metadata store would be too large."));
    }
    operation.build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::{env, fs};

    use lightv_api::contract::boot_source::DEFAULT_BOOT_ARGS;
    use lightv_api::contract::instance::{APP_NAME, FIRECRACKER_VERSION};
    use lightv_api::request::{Call, Request};
    use serde_json::Value;

    use super::*;

    const UPDATE: &str = "LIGHTV_UPDATE_REST";

    #[test]
    fn the_checked_in_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let made = document().unwrap();
        if env::var_os(UPDATE).is_some() {
            fs::write(&path, &made).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == made,
            "docs/openapi.json is not what the types say: run `cargo xtask rest`"
        );
    }

    #[test]
    fn constants_are_written_out() {
        let json = document().unwrap();
        let text = json.replace("\\n", " ");
        for constant in [APP_NAME, FIRECRACKER_VERSION, DEFAULT_BOOT_ARGS] {
            assert!(text.contains(&format!("`{constant}`")), "{constant}");
        }
    }

    #[test]
    fn every_schema_that_is_named_is_there() {
        let json: Value = serde_json::from_str(&document().unwrap()).unwrap();
        let known = json["components"]["schemas"].as_object().unwrap();
        let text = json.to_string();
        let named: BTreeSet<&str> = text
            .split("#/components/schemas/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        for name in named {
            assert!(known.contains_key(name), "{name}");
        }
    }

    #[test]
    fn every_operation_defines_what_its_path_names() {
        let json: Value = serde_json::from_str(&document().unwrap()).unwrap();
        for (path, operations) in json["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let parameters = operation["parameters"].as_array();
                let has_id = parameters.is_some_and(|all| all[0]["name"] == "id");
                assert_eq!(has_id, path.contains("{id}"), "{method} {path}");
            }
        }
    }

    #[test]
    fn every_operation_is_a_route() {
        let mut names = BTreeSet::new();
        for (method, path, name, ..) in OPERATIONS {
            assert!(names.insert(name), "{name}");
            let call = Call {
                method: *method,
                path: &path.replace("{id}", "a"),
                body: if matches!(method, Get | Delete) {
                    b""
                } else {
                    b"{}"
                },
            };
            if let Err(fault) = Request::parse(call) {
                let message = fault.message;
                let is_unknown =
                    message.contains("Invalid request") || message.contains("Unrecognized");
                assert!(!is_unknown, "{path}: {message}");
            }
        }
        // One each: lightv-api's own test counts the variants of Request.
        assert_eq!(names.len(), 45);
    }
}
