//! Disks, networks and environment as they are typed.

use std::env;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use lightv_api::config::{DriveSpec, NetSpec};
use lightv_api::contract::drive::{CacheType, IoEngine};
use lightv_vmm::net_override::{NetAddress, NetFault, NetOverride};

/// Why an argument was refused; clap adds which one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgFault {
    #[error("expected ID=PATH")]
    NotIdPath,
    #[error("unknown option {0:?}")]
    UnknownOption(String),
    #[error("cache is `writeback` or `unsafe`, not {0:?}")]
    UnknownCache(String),
    #[error("engine is `sync` or `async`, not {0:?}")]
    UnknownEngine(String),
    #[error("overlay-size is a number of MiB, not {0:?}")]
    NotMib(String),
    #[error("queues is a number of queues, not {0:?}")]
    NotQueues(String),
    #[error("expected NAME=VALUE or NAME")]
    NotEnv,
    #[error("{0} is not set in the environment, or not valid UTF-8")]
    NotSet(String),
}

/// `ID=PATH`, for the disks of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replacement(pub(crate) String);

impl Replacement {
    /// A disk of an image and the file that takes its place.
    pub(crate) fn disk(text: &str) -> Result<Self, ArgFault> {
        match text.split_once('=') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(ArgFault::NotIdPath),
        }
    }

    /// Id and path.
    pub(crate) fn pair(&self) -> (String, PathBuf) {
        let (id, value) = self.0.split_once('=').unwrap_or((&self.0, ""));
        (id.to_owned(), value.to_owned().into())
    }
}

/// `ID=PATH[,ro][,root][,in-image][,direct][,discard][,queues=N][,overlay[=DELTA]][,overlay-size=MIB][,cache=writeback][,engine=async]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DiskArg(pub(crate) DriveSpec);

impl FromStr for DiskArg {
    type Err = ArgFault;

    fn from_str(text: &str) -> Result<Self, ArgFault> {
        let mut parts = text.split(',');
        let first = parts.next().and_then(|first| first.split_once('='));
        let Some((id, path)) = first.filter(|(id, path)| !id.is_empty() && !path.is_empty()) else {
            return Err(ArgFault::NotIdPath);
        };
        let mut drive = DriveSpec {
            drive_id: id.into(),
            path_on_host: path.into(),
            ..DriveSpec::default()
        };
        for option in parts {
            match option {
                "ro" => drive.is_read_only = true,
                "root" => drive.is_root_device = true,
                "in-image" => drive.in_image = Some(true),
                "cache=writeback" => drive.cache_type = Some(CacheType::Writeback),
                "cache=unsafe" => drive.cache_type = Some(CacheType::Unsafe),
                "engine=sync" => drive.io_engine = Some(IoEngine::Sync),
                "engine=async" => drive.io_engine = Some(IoEngine::Async),
                "direct" => drive.direct = Some(true),
                "discard" => drive.discard = Some(true),
                "overlay" => drive.overlay.get_or_insert_default().path = None,
                other => {
                    if valued_option(&mut drive, other)? {
                        continue;
                    }
                    return Err(match other.split_once('=') {
                        Some(("cache", cache)) => ArgFault::UnknownCache(cache.into()),
                        Some(("engine", engine)) => ArgFault::UnknownEngine(engine.into()),
                        _ => ArgFault::UnknownOption(other.into()),
                    });
                }
            }
        }
        Ok(Self(drive))
    }
}

/// Whether `option` is one of those whose value is free, which is then in `drive`.
fn valued_option(drive: &mut DriveSpec, option: &str) -> Result<bool, ArgFault> {
    match option.split_once('=') {
        Some(("overlay", path)) if !path.is_empty() => {
            drive.overlay.get_or_insert_default().path = Some(path.into());
        }
        Some(("overlay-size", mib)) => {
            let size_mib = mib.parse().map_err(|_| ArgFault::NotMib(mib.into()))?;
            drive.overlay.get_or_insert_default().size_mib = Some(size_mib);
        }
        Some(("queues", count)) => {
            let count = count
                .parse()
                .map_err(|_| ArgFault::NotQueues(count.into()))?;
            drive.num_queues = Some(count);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// `ID=TAP[,mac=…][,ip=a.b.c.d/p[,gw=…][,dns=…]][,queues=N]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetArg {
    /// What the monitor is told.
    pub(crate) spec: NetSpec,
    /// What the guest is told.
    pub(crate) address: Option<NetAddress>,
}

/// The Linux parameter `ip=` (Documentation/admin-guide/nfs/nfsroot.rst) for interface `eth{index}`.
pub(crate) fn ip_parameter(told: &NetAddress, index: usize) -> String {
    let netmask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - told.prefix).unwrap_or(0));
    let gateway = told.gateway.map(|gateway| gateway.to_string());
    let (address, gateway) = (told.address, gateway.unwrap_or_default());
    format!("ip={address}::{gateway}:{netmask}::eth{index}:off")
}

impl FromStr for NetArg {
    type Err = NetFault;

    fn from_str(text: &str) -> Result<Self, NetFault> {
        let (macs, others): (Vec<&str>, Vec<&str>) =
            text.split(',').partition(|part| part.starts_with("mac="));
        let NetOverride {
            id,
            host,
            address,
            queues,
        } = others.join(",").parse()?;
        let mac = macs.last().and_then(|mac| mac.strip_prefix("mac="));
        let mut spec = NetSpec {
            iface_id: id,
            guest_mac: mac.map(str::to_owned),
            num_queues: queues,
            ..NetSpec::default()
        };
        spec.set_host(host);
        Ok(Self { spec, address })
    }
}

/// `NAME=VALUE`, or `NAME` for our own environment's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EnvArg {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl FromStr for EnvArg {
    type Err = ArgFault;

    fn from_str(text: &str) -> Result<Self, ArgFault> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None if text.is_empty() => return Err(ArgFault::NotEnv),
            None => (
                text,
                env::var(text).map_err(|_| ArgFault::NotSet(text.into()))?,
            ),
        };
        if name.is_empty() {
            return Err(ArgFault::NotEnv);
        }
        Ok(Self {
            name: name.into(),
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_options_in_any_order() {
        let disk = "data=/d.img,root,cache=writeback,ro"
            .parse::<DiskArg>()
            .expect("valid")
            .0;
        assert_eq!(
            (disk.drive_id.as_str(), disk.path_on_host.to_str()),
            ("data", Some("/d.img"))
        );
        assert!(disk.is_root_device && disk.is_read_only);
        assert_eq!(disk.cache_type, Some(CacheType::Writeback));
    }

    #[test]
    fn an_overlay_is_in_memory_or_in_a_file() {
        let overlay = |text: &str| {
            let disk = text.parse::<DiskArg>().expect("valid").0;
            let overlay = disk.overlay.expect("it has one");
            (overlay.path, overlay.size_mib)
        };
        assert_eq!(overlay("d=x,overlay"), (None, None));
        assert_eq!(overlay("d=x,overlay-size=64,overlay"), (None, Some(64)));
        let path = PathBuf::from("a.delta");
        let both = (Some(path), Some(1));
        assert_eq!(overlay("d=x,overlay=a.delta,overlay-size=1"), both);
        let drive = "d=x,queues=4".parse::<DiskArg>().unwrap().0;
        assert_eq!(drive.num_queues, Some(4));
        let fault = "d=x,queues=many".parse::<DiskArg>();
        assert_eq!(fault, Err(ArgFault::NotQueues("many".into())));
        let fault = "d=x,overlay-size=1G".parse::<DiskArg>();
        assert_eq!(fault, Err(ArgFault::NotMib("1G".into())));
    }

    #[test]
    fn bad_disks_are_refused_by_name() {
        let cases = [
            ("d.img", ArgFault::NotIdPath),
            ("=d.img", ArgFault::NotIdPath),
            ("d=", ArgFault::NotIdPath),
            ("d=x,overlay=", ArgFault::UnknownOption("overlay=".into())),
            ("d=x,rw", ArgFault::UnknownOption("rw".into())),
            ("d=x,cache=fast", ArgFault::UnknownCache("fast".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<DiskArg>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn addresses_become_a_kernel_parameter() {
        let cases = [
            (
                "eth0=tap0,ip=10.0.0.2/24,gw=10.0.0.1",
                "ip=10.0.0.2::10.0.0.1:255.255.255.0::eth0:off",
            ),
            (
                "tap0,ip=10.0.0.2/32",
                "ip=10.0.0.2:::255.255.255.255::eth0:off",
            ),
            ("tap0,ip=10.0.0.2/0", "ip=10.0.0.2:::0.0.0.0::eth0:off"),
        ];
        for (text, expected) in cases {
            let net: NetArg = text.parse().expect("valid");
            assert_eq!(net.spec.iface_id, "eth0");
            assert_eq!(
                net.address.map(|told| ip_parameter(&told, 0)).as_deref(),
                Some(expected)
            );
        }
    }

    #[test]
    fn a_tap_has_as_many_queue_pairs_as_are_asked_for() {
        for (text, queues) in [("tap0", None), ("e=tap0,ip=10.0.0.2/24,queues=2", Some(2))] {
            let net: NetArg = text.parse().expect("valid");
            assert_eq!(net.spec.num_queues, queues, "{text}");
        }
    }

    #[test]
    fn the_mac_address_stands_anywhere_after_the_tap() {
        let net: NetArg = "tap0,mac=a,ip=10.0.0.2/24".parse().expect("valid");
        assert_eq!(net.spec.guest_mac.as_deref(), Some("a"));
        assert!(net.address.is_some());
        assert_eq!("mac=a".parse::<NetArg>(), Err(NetFault::NotIdTap));
        assert_eq!(Replacement::disk("d.img"), Err(ArgFault::NotIdPath));
    }

    #[test]
    fn environment_is_given_or_passed_through() {
        let parse = |text: &str| text.parse::<EnvArg>().map(|env| (env.name, env.value));
        assert_eq!(parse("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(parse("A="), Ok(("A".into(), String::new())));
        assert_eq!(
            parse("PATH").map(|(_, value)| value),
            Ok(env::var("PATH").expect("set"))
        );
        assert_eq!(
            parse("LIGHTV_NOT_SET"),
            Err(ArgFault::NotSet("LIGHTV_NOT_SET".into()))
        );
        assert_eq!(parse("=b"), Err(ArgFault::NotEnv));
    }
}
