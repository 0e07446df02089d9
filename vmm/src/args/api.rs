//! The flags that Firecracker has too: for clients that start the monitor as they start Firecracker.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::confinement::{Confinement, LandlockChoice, SeccompChoice};
use crate::metadata::MetadataFile;
use crate::sandbox::PathAccess;

/// See `Cli`.
#[derive(Debug, Args)]
#[command(next_help_heading = "REST API and Firecracker's flags")]
pub(super) struct ApiArgs {
    /// Serve the REST API on this Unix socket; a machine that other flags name is started at once.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["save", "tty", "record_working_set"])]
    pub(super) api_sock: Option<PathBuf>,
    /// The same as --config.
    #[arg(long, value_name = "FILE", group = "job")]
    pub(super) config_file: Option<PathBuf>,
    /// Serve no REST API. Only a program called `firecracker` serves it without --api-sock.
    #[arg(long, requires = "config_file", conflicts_with = "api_sock")]
    pub(super) no_api: bool,
    /// Begin with the JSON object in this file as metadata, which guests read by the metadata service (`mmds-config`).
    #[arg(long, value_name = "FILE")]
    pub(super) metadata: Option<PathBuf>,
    /// Bytes that a request's body can have.
    #[arg(long, value_name = "BYTES", default_value_t = MetadataFile::BYTES_MAX_DEFAULT, value_parser = parse_bytes)]
    pub(super) http_api_max_payload_size: u64,
    /// Bytes of JSON that the metadata can have [default: as --http-api-max-payload-size].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(super) mmds_size_limit: Option<u64>,
    /// Accepted with a warning: devices are on virtio-mmio, which guests find by ACPI and by the command line.
    #[arg(long)]
    pub(super) enable_pci: bool,
    /// Do not hold threads to the system calls that they need (docs/isolation.md).
    #[arg(long, conflicts_with = "seccomp_filter")]
    no_seccomp: bool,
    /// Hold threads to the lists in this file: JSON as in vmm/seccomp. Threads that it does not name keep LightV's.
    #[arg(long, value_name = "FILE")]
    seccomp_filter: Option<PathBuf>,
    /// Let the files and folders at PATH be read (r) or also written (rw) once the machine runs, and with --api-sock no others
    /// be opened at any time, but for LightV's own.
    #[arg(long, value_name = "path=PATH,access=r|rw", action = ArgAction::Append, value_parser = parse_rule)]
    landlock_rules: Vec<(PathBuf, PathAccess)>,
    /// Do not restrict the files that can be opened.
    #[arg(long, conflicts_with = "landlock_rules")]
    no_landlock: bool,
    /// When the caller began, in microseconds of CLOCK_MONOTONIC: --started-at-ns by Firecracker's name.
    #[arg(long, value_name = "US", conflicts_with = "started_at_ns")]
    pub(super) start_time_us: Option<u64>,
    /// Processor time of the caller before it became this process, in microseconds, for the metrics.
    #[arg(long, value_name = "US")]
    pub(super) start_time_cpu_us: Option<u64>,
    /// Processor time of the caller's parents, in microseconds, for the metrics.
    #[arg(long, value_name = "US")]
    pub(super) parent_cpu_time_us: Option<u64>,
    /// Log how long the guest took to boot, when its init writes a byte for it (docs/api.md).
    #[arg(long)]
    pub(super) boot_timer: bool,
    /// Print the version of the snapshot format.
    #[arg(long, group = "job")]
    pub(super) snapshot_version: bool,
    /// Print the version of the snapshot format that this file has.
    #[arg(long, value_name = "FILE", group = "job")]
    pub(super) describe_snapshot: Option<PathBuf>,
}

/// Far above any metadata, and no danger to a host.
const BYTES_MAX: u64 = 64 << 20;

fn parse_bytes(text: &str) -> Result<u64, String> {
    let bytes = text.parse().ok();
    bytes
        .filter(|bytes| (1..=BYTES_MAX).contains(bytes))
        .ok_or_else(|| format!("1–{BYTES_MAX} are allowed"))
}

/// The path may hold anything, commas too: the access comes last.
fn parse_rule(text: &str) -> Result<(PathBuf, PathAccess), String> {
    let parts = text
        .strip_prefix("path=")
        .and_then(|rest| rest.rsplit_once(",access="));
    match parts {
        Some((path, "r")) if !path.is_empty() => Ok((path.into(), PathAccess::Read)),
        Some((path, "rw")) if !path.is_empty() => Ok((path.into(), PathAccess::ReadWrite)),
        _ => Err("path=PATH,access=r or path=PATH,access=rw is needed".to_owned()),
    }
}

/// What the REST API is served with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiJob {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Bytes that a request's body can have.
    pub body_bytes_max: u64,
    /// Bytes that the metadata can have.
    pub metadata_bytes_max: u64,
    /// Metadata to begin with.
    pub metadata: Option<MetadataFile>,
    /// Processor time of this process that was not its start's, in microseconds.
    pub cpu_before_us: u64,
    /// Processor time of others that was its start's, in microseconds.
    pub cpu_of_parents_us: u64,
}

/// Where a program that is called `firecracker` serves its API without being told.
const FIRECRACKER_SOCKET: &str = "/run/firecracker.socket";

impl ApiArgs {
    /// What is to be served, if anything.
    pub(super) fn job(&self, is_firecracker: bool) -> Option<ApiJob> {
        let by_name = || (is_firecracker && !self.no_api).then(|| FIRECRACKER_SOCKET.into());
        let socket = self.api_sock.clone().or_else(by_name)?;
        Some(ApiJob {
            socket,
            body_bytes_max: self.http_api_max_payload_size,
            metadata_bytes_max: self.metadata_bytes_max(),
            metadata: self.metadata_file(),
            cpu_before_us: self.start_time_cpu_us.unwrap_or(0),
            cpu_of_parents_us: self.parent_cpu_time_us.unwrap_or(0),
        })
    }

    /// How the process is confined.
    pub(super) fn confinement(&self) -> Confinement {
        let seccomp = match (&self.seccomp_filter, self.no_seccomp) {
            (Some(path), _) => SeccompChoice::File(path.clone()),
            (None, true) => SeccompChoice::Off,
            (None, false) => SeccompChoice::BuiltIn,
        };
        let landlock = match (self.no_landlock, self.landlock_rules.as_slice()) {
            (true, _) => LandlockChoice::Off,
            (false, []) => LandlockChoice::Named,
            (false, given) => LandlockChoice::Given(given.to_vec()),
        };
        Confinement { seccomp, landlock }
    }

    /// Metadata to begin with.
    pub(super) fn metadata_file(&self) -> Option<MetadataFile> {
        let path = self.metadata.clone()?;
        let bytes_max = self.metadata_bytes_max();
        Some(MetadataFile { path, bytes_max })
    }

    fn metadata_bytes_max(&self) -> u64 {
        self.mmds_size_limit
            .unwrap_or(self.http_api_max_payload_size)
    }
}

/// Whether a program of this name is to be Firecracker to its caller.
pub(super) fn is_firecracker(program: Option<&OsString>) -> bool {
    let name = super::name_of(program);
    name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"firecracker"))
}
