//! What of the host's files a machine needs: what its flags and its configuration name, and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lightv_api::config::VmSpec;
use lightv_api::contract::cpu::CpuConfig;
use lightv_api::contract::logger::LoggerSpec;
use lightv_api::contract::metrics::MetricsSpec;

use super::JailError;
use crate::args::{Origin, RunJob};
use crate::confinement::{Confinement, SeccompChoice};
use crate::jail_plan::{Access, Place};
use crate::metadata::MetadataFile;
use crate::outputs::Outputs;
use crate::stamps::TimingsSink;

/// A file that is written, and made if it is not there: then it is its folder.
fn output(path: &Path) -> Place {
    if fs::symlink_metadata(path).is_ok() {
        Place::write(path)
    } else {
        folder_of(path)
    }
}

/// The folder of a file that is made under a name of its own, and renamed.
fn folder_of(path: &Path) -> Place {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => Place::write(folder),
        _ => Place::write("."),
    }
}

/// Those of a machine with this configuration.
pub(super) fn of_spec(spec: &VmSpec) -> Vec<Place> {
    let mut places = Vec::new();
    if let Some(boot) = &spec.boot_source {
        places.push(Place::read(&boot.kernel_image_path));
        places.extend(boot.initrd_path.as_ref().map(Place::read));
    }
    for drive in &spec.drives {
        if !drive.path_on_host.as_os_str().is_empty() {
            let path = &drive.path_on_host;
            let is_written = !drive.is_read_only && drive.overlay.is_none();
            places.push(if is_written {
                Place::write(path)
            } else {
                Place::read(path)
            });
        }
        let delta = drive.overlay.as_ref().and_then(|it| it.path.as_deref());
        places.extend(delta.map(output));
    }
    if let Some(vsock) = &spec.vsock {
        // Connections of the guest go to sockets beside it, which the host makes when it likes.
        places.push(folder_of(&vsock.uds_path));
    }
    if let Some(CpuConfig::File(path)) = &spec.cpu_config {
        places.push(Place::read(path));
    }
    places.extend(of_logger(spec.logger.as_ref()));
    places.extend(of_metrics(spec.metrics.as_ref()));
    places
}

/// Those that the flags of a run name, beside what is in its configuration.
pub(super) fn of_run(run: &RunJob) -> Vec<Place> {
    let mut places = Vec::new();
    match &run.origin {
        Origin::Config(path) if path == Path::new("-") => {}
        origin if run.record_working_set => {
            places.push(folder_of(origin.path()));
        }
        origin => places.push(Place::read(origin.path())),
    }
    if let Some(plan) = &run.save {
        places.push(folder_of(&plan.path));
    }
    if let Some(TimingsSink::File(path)) = &run.timings {
        places.push(output(path));
    }
    places.extend(of_metadata(run.metadata.as_ref()));
    places.extend(of_outputs(&run.outputs));
    places
}

/// That of filters of system calls.
pub(super) fn of_confinement(confinement: &Confinement) -> Option<Place> {
    match &confinement.seccomp {
        SeccompChoice::File(path) => Some(Place::read(path)),
        SeccompChoice::BuiltIn | SeccompChoice::Off => None,
    }
}

/// That of metadata to begin with.
pub(super) fn of_metadata(metadata: Option<&MetadataFile>) -> Option<Place> {
    metadata.map(|metadata| Place::read(&metadata.path))
}

/// Those of log and metrics.
pub(super) fn of_outputs(outputs: &Outputs) -> Vec<Place> {
    let logger = of_logger(outputs.logger.as_ref());
    let metrics = of_metrics(outputs.metrics.as_ref());
    logger.into_iter().chain(metrics).collect()
}

fn of_logger(spec: Option<&LoggerSpec>) -> Option<Place> {
    spec?.log_path.as_deref().map(output)
}

fn of_metrics(spec: Option<&MetricsSpec>) -> Option<Place> {
    spec.map(|spec| output(&spec.metrics_path))
}

/// A place as the host's file system has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Without symbolic links.
    pub(super) path: PathBuf,
    pub(super) access: Access,
    pub(super) kind: Kind,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    /// A block or character device.
    Device,
    /// A file, FIFO or socket.
    File,
}

/// Another path of a place, by which the machine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alias {
    pub(super) path: PathBuf,
    pub(super) leads_to: PathBuf,
}

/// Devices of a machine that are there, if the host has them.
pub(super) const DEVICES: [&str; 4] = ["/dev/kvm", "/dev/net/tun", "/dev/null", "/dev/userfaultfd"];
/// Where a standard stream is, whoever's it is: these are in every jail.
const STREAMS: [&str; 5] = [
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
    "/dev/fd",
    "/proc",
];

/// Finds `places`, without those that are not there: who opens them says so best. Of two at one path the one that may more
/// counts; folders come before what is in them.
///
/// # Errors
/// [`JailError::Look`].
pub(super) fn find(places: &[Place]) -> Result<(Vec<Found>, Vec<Alias>), JailError> {
    let (mut found, mut aliases): (Vec<Found>, Vec<Alias>) = (Vec::new(), Vec::new());
    for Place { path, access } in places {
        let look = |cause| JailError::Look {
            path: path.clone(),
            cause,
        };
        let named = std::path::absolute(path).map_err(look)?;
        if STREAMS.iter().any(|stream| named.starts_with(stream)) {
            continue;
        }
        let real = match fs::canonicalize(&named) {
            Ok(real) => real,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            Err(cause) => return Err(look(cause)),
        };
        // Those are there in any case.
        if DEVICES.iter().any(|device| real == Path::new(device)) {
            continue;
        }
        let kind = fs::metadata(&real).map_err(look)?.file_type();
        if real != named {
            aliases.push(Alias {
                path: named,
                leads_to: real.clone(),
            });
        }
        match found.iter_mut().find(|other| other.path == real) {
            Some(other) => other.access = other.access.max(*access),
            None => found.push(Found {
                path: real,
                access: *access,
                kind: kind_of(kind),
            }),
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok((found, aliases))
}

fn kind_of(kind: fs::FileType) -> Kind {
    use std::os::unix::fs::FileTypeExt as _;
    if kind.is_dir() {
        Kind::Folder
    } else if kind.is_block_device() || kind.is_char_device() {
        Kind::Device
    } else {
        Kind::File
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_needs_what_it_names_and_writes_what_it_may() {
        let text = r#"{"boot-source": {"kernel_image_path": "k", "initrd_path": "i"},
            "drives": [{"drive_id": "a", "path_on_host": "a"},
                {"drive_id": "b", "path_on_host": "b", "is_read_only": true},
                {"drive_id": "c", "path_on_host": "c", "overlay": {"path": "/nowhere/delta"}},
                {"drive_id": "d", "in_image": true, "is_read_only": true}],
            "vsock": {"guest_cid": 3, "uds_path": "/run/v/v.sock"},
            "logger": {"log_path": "/nowhere/log"}}"#;
        let spec: VmSpec = serde_json::from_str(text).unwrap();
        let expected = [
            Place::read("k"),
            Place::read("i"),
            Place::write("a"),
            Place::read("b"),
            Place::read("c"),
            Place::write("/nowhere"),
            Place::write("/run/v"),
            Place::write("/nowhere"),
        ];
        assert_eq!(of_spec(&spec), expected);
    }

    #[test]
    fn links_become_aliases_and_folders_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "").unwrap();
        std::os::unix::fs::symlink(root.join("sub/file"), root.join("link")).unwrap();
        let places = [
            Place::read(root.join("link")),
            Place::write(root.join("sub/file")),
            Place::read(root.join("absent")),
            Place::read(root.join("sub")),
            Place::write("/dev/stdout"),
            Place::write("/dev/null"),
        ];
        let (found, aliases) = find(&places).unwrap();
        let one = |path: &str, access, kind| Found {
            path: root.join(path),
            access,
            kind,
        };
        let expected = [
            one("sub", Access::Read, Kind::Folder),
            one("sub/file", Access::Write, Kind::File),
        ];
        assert_eq!(found, expected);
        let alias = Alias {
            path: root.join("link"),
            leads_to: root.join("sub/file"),
        };
        assert_eq!(aliases, [alias]);
    }
}
