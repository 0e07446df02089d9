//! Disks, networks and environment as they are typed.

use std::env;
use std::net::Ipv4Addr;
use std::str::FromStr;

use lightv_api::config::{DriveSpec, NetSpec};

/// Id of the interface when only its tap is named.
const DEFAULT_INTERFACE: &str = "eth0";

/// Why an argument was refused; clap adds which one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgFault {
    #[error("expected ID=PATH")]
    NotIdPath,
    #[error("expected ID=TAP or TAP")]
    NotIdTap,
    #[error("unknown option {0:?}")]
    UnknownOption(String),
    #[error("cache is `writeback` or `unsafe`, not {0:?}")]
    UnknownCache(String),
    #[error("{0:?} is no IPv4 address")]
    NotIpv4(String),
    #[error("expected ip=ADDRESS/PREFIX with a prefix of 0–32")]
    NotIpv4Network,
    #[error("gw needs ip")]
    GatewayAlone,
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

    /// An interface of an image and its tap; `eth0` when only the tap is named.
    pub(crate) fn net(text: &str) -> Result<Self, ArgFault> {
        let (id, tap) = id_and_tap(text)?;
        Ok(Self(format!("{id}={tap}")))
    }

    /// Id, and path or tap.
    pub(crate) fn pair<T: From<String>>(&self) -> (String, T) {
        let (id, value) = self.0.split_once('=').unwrap_or((&self.0, ""));
        (id.to_owned(), value.to_owned().into())
    }
}

fn id_and_tap(text: &str) -> Result<(&str, &str), ArgFault> {
    let (id, tap) = text.split_once('=').unwrap_or((DEFAULT_INTERFACE, text));
    if id.is_empty() || tap.is_empty() {
        Err(ArgFault::NotIdTap)
    } else {
        Ok((id, tap))
    }
}

/// `ID=PATH[,ro][,root][,in-image][,cache=writeback]`.
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
                "cache=writeback" => drive.cache_type = Some("Writeback".into()),
                "cache=unsafe" => drive.cache_type = Some("Unsafe".into()),
                other => {
                    return Err(match other.strip_prefix("cache=") {
                        Some(cache) => ArgFault::UnknownCache(cache.into()),
                        None => ArgFault::UnknownOption(other.into()),
                    });
                }
            }
        }
        Ok(Self(drive))
    }
}

/// `ID=TAP[,mac=…][,ip=a.b.c.d/p[,gw=…]]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetArg {
    /// What the monitor is told.
    pub(crate) spec: NetSpec,
    /// What the guest is told.
    pub(crate) address: Option<GuestAddress>,
}

/// An IPv4 address that the guest is to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestAddress {
    address: Ipv4Addr,
    /// 0–32.
    prefix: u32,
    gateway: Option<Ipv4Addr>,
}

impl GuestAddress {
    /// The Linux parameter `ip=` (Documentation/admin-guide/nfs/nfsroot.rst) for interface `eth{index}`.
    pub(crate) fn parameter(&self, index: usize) -> String {
        let Self {
            address,
            prefix,
            gateway,
        } = self;
        let netmask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - prefix).unwrap_or(0));
        let gateway = gateway
            .map(|gateway| gateway.to_string())
            .unwrap_or_default();
        format!("ip={address}::{gateway}:{netmask}::eth{index}:off")
    }
}

impl FromStr for NetArg {
    type Err = ArgFault;

    fn from_str(text: &str) -> Result<Self, ArgFault> {
        let mut parts = text.split(',');
        let (id, tap) = id_and_tap(parts.next().unwrap_or_default())?;
        let mut spec = NetSpec {
            iface_id: id.into(),
            host_dev_name: tap.into(),
            ..NetSpec::default()
        };
        let (mut network, mut gateway) = (None, None);
        for option in parts {
            match option.split_once('=') {
                Some(("mac", mac)) => spec.guest_mac = Some(mac.into()),
                Some(("ip", value)) => network = Some(parse_network(value)?),
                Some(("gw", value)) => gateway = Some(parse_ipv4(value)?),
                _ => return Err(ArgFault::UnknownOption(option.into())),
            }
        }
        let address = match (network, gateway) {
            (Some((address, prefix)), gateway) => Some(GuestAddress {
                address,
                prefix,
                gateway,
            }),
            (None, Some(_)) => return Err(ArgFault::GatewayAlone),
            (None, None) => None,
        };
        Ok(Self { spec, address })
    }
}

fn parse_network(text: &str) -> Result<(Ipv4Addr, u32), ArgFault> {
    let (address, prefix) = text.split_once('/').ok_or(ArgFault::NotIpv4Network)?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32);
    Ok((
        parse_ipv4(address)?,
        prefix.ok_or(ArgFault::NotIpv4Network)?,
    ))
}

fn parse_ipv4(text: &str) -> Result<Ipv4Addr, ArgFault> {
    text.parse().map_err(|_| ArgFault::NotIpv4(text.into()))
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
        assert_eq!(disk.cache_type.as_deref(), Some("Writeback"));
    }

    #[test]
    fn bad_disks_are_refused_by_name() {
        let cases = [
            ("d.img", ArgFault::NotIdPath),
            ("=d.img", ArgFault::NotIdPath),
            ("d=", ArgFault::NotIdPath),
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
                net.address.map(|address| address.parameter(0)).as_deref(),
                Some(expected)
            );
        }
    }

    #[test]
    fn bad_networks_are_refused_by_name() {
        let cases = [
            ("", ArgFault::NotIdTap),
            ("eth0=", ArgFault::NotIdTap),
            ("tap0,gw=10.0.0.1", ArgFault::GatewayAlone),
            ("tap0,ip=10.0.0.2", ArgFault::NotIpv4Network),
            ("tap0,ip=10.0.0.2/33", ArgFault::NotIpv4Network),
            ("tap0,ip=10.0.0/8", ArgFault::NotIpv4("10.0.0".into())),
            ("tap0,mtu=1", ArgFault::UnknownOption("mtu=1".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<NetArg>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn replacements_name_what_they_replace() {
        assert_eq!(
            Replacement::net("tap3").map(|net| net.0),
            Ok("eth0=tap3".into())
        );
        assert_eq!(
            Replacement::net("lan=tap3").map(|net| net.0),
            Ok("lan=tap3".into())
        );
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
