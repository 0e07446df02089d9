//! What machines of one image can have in common, and what only one can have.

use std::path::{Path, PathBuf};

use crate::config::{ConfigFault, ConfigFaults, DriveConfig, MachineConfig, NetConfig, NetHost};

/// In the path of vsock's socket: each machine's process id.
pub(super) const PID: &str = "{pid}";

/// Looks whether many machines can be made of `config`.
///
/// # Errors
/// What two of them cannot share, and what to do instead.
pub(super) fn check(config: &MachineConfig) -> Result<(), ConfigFaults> {
    let drives = config.drives().iter().filter_map(of_drive);
    let nets = config.nets().iter().filter_map(of_net);
    let vsock = config.vsock().and_then(|vsock| of_vsock(&vsock.path));
    let faults: Vec<ConfigFault> = drives.chain(nets).chain(vsock).collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(ConfigFaults(faults)),
    }
}

const RUN_ALONE: &str = "or run the machine without a pool";

fn of_drive(drive: &DriveConfig) -> Option<ConfigFault> {
    let (found, allowed) = match &drive.overlay {
        Some(overlay) => {
            let path = overlay.path.as_ref()?.display();
            (
                format!("with its delta in {path}, which two machines cannot share"),
                "an overlay without a path, whose delta is in memory",
            )
        }
        None if drive.read_only => return None,
        None => (
            format!(
                "{}, which two machines cannot both write",
                drive.path.display()
            ),
            "is_read_only, or an overlay without a path, whose delta is in memory",
        ),
    };
    Some(ConfigFault {
        field: format!("drive `{}` of a template", drive.id),
        found,
        allowed: format!("{allowed}; {RUN_ALONE}, with --disk"),
    })
}

fn of_net(net: &NetConfig) -> Option<ConfigFault> {
    let found = match &net.host {
        NetHost::Tap(name) => format!("on tap {name}, which two machines cannot share"),
        NetHost::Fd(number) => format!("on descriptor {number}, which two machines cannot share"),
        NetHost::User(user) if !user.publish.is_empty() => {
            "with published ports, which two machines cannot share".to_owned()
        }
        NetHost::User(_) => return None,
    };
    Some(ConfigFault {
        field: format!("network interface `{}` of a template", net.id),
        found,
        allowed: format!(
            "a network in user space without published ports (--net {}=user); {RUN_ALONE}, with --net",
            net.id
        ),
    })
}

fn of_vsock(path: &Path) -> Option<ConfigFault> {
    let has_pid = path.to_str().is_some_and(|path| path.contains(PID));
    (!has_pid).then(|| ConfigFault {
        field: "vsock of a template".to_owned(),
        found: format!("{}, which two machines cannot share", path.display()),
        allowed: format!(
            "a path with {PID} in it, in whose place each machine has its process id (--vsock /run/vm-{PID}.sock)"
        ),
    })
}

/// The path of vsock's socket of the machine whose process id is `pid`.
pub(super) fn vsock_of(path: &Path, pid: u32) -> PathBuf {
    let path = path.to_string_lossy();
    path.replace(PID, &pid.to_string()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check_json(device: &str, value: Value) -> Result<(), String> {
        let mut spec = json!({"boot-source": {"kernel_image_path": "k"}});
        spec[device] = value;
        let spec = serde_json::from_value(spec).unwrap();
        let config = MachineConfig::prove(spec, 1 << 40).unwrap();
        check(&config).map_err(|faults| faults.to_string())
    }

    #[test]
    fn what_two_machines_cannot_share_is_refused_by_name() {
        let drive = |more: Value| {
            let mut drive = json!({"drive_id": "d", "path_on_host": "/a"});
            for (key, value) in more.as_object().unwrap() {
                drive[key] = value.clone();
            }
            ("drives", json!([drive]))
        };
        let net = |host: &str| {
            (
                "network-interfaces",
                json!([{"iface_id": "n", "host_dev_name": host}]),
            )
        };
        let vsock = |path: &str| ("vsock", json!({"guest_cid": 3, "uds_path": path}));
        for ((device, value), words) in [
            (drive(json!({})), &["drive `d`", "/a", "overlay"][..]),
            (
                drive(json!({"overlay": {"path": "/delta"}})),
                &["drive `d`", "/delta", "without a path"],
            ),
            (net("tap7"), &["interface `n`", "tap7", "--net n=user"]),
            (vsock("/v.sock"), &["vsock", "/v.sock", "{pid}"]),
        ] {
            let refused = check_json(device, value).unwrap_err();
            for word in words {
                assert!(refused.contains(word), "{word}: {refused}");
            }
        }
        for (device, value) in [
            drive(json!({"is_read_only": true})),
            drive(json!({"overlay": {}})),
            vsock("/run/{pid}/v"),
        ] {
            assert_eq!(check_json(device, value), Ok(()), "{device}");
        }
    }

    #[test]
    fn each_machine_has_its_process_id_in_the_path() {
        let path = vsock_of(Path::new("/run/{pid}/v-{pid}.sock"), 7);
        assert_eq!(path, Path::new("/run/7/v-7.sock"));
    }
}
