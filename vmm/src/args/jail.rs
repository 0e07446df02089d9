//! Flags of a jail.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::jail_plan::{JailPlan, Limit, Network, Place, parse_parent};

/// The flags of `--jail`, for whoever starts machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Jail (docs/jail.md)")]
pub struct JailArgs {
    /// Run in a jail: user, processes, network, IPC and mounts of its own, a root with only what the machine names, and no
    /// privileges. A second process stays outside, passes on signals and the exit status, and cleans up
    #[arg(long)]
    jail: bool,
    /// Become this user in the jail; needs root
    #[arg(long, value_name = "UID", requires = "jail")]
    jail_uid: Option<u32>,
    /// Become this group in the jail; needs root
    #[arg(long, value_name = "GID", requires = "jail")]
    jail_gid: Option<u32>,
    /// The jail's network name space: `new`, an empty one (the default); `host`; or the path of one, which has the taps
    #[arg(long, value_name = "new|host|PATH", requires = "jail")]
    jail_netns: Option<NetworkArg>,
    /// Limit the machine by a file of a control group of its own, version 1 or 2 as the host has it: memory.max=536870912,
    /// cpu.cfs_quota_us=50000
    #[arg(long, value_name = "FILE=VALUE", requires = "jail")]
    jail_cgroup: Vec<Limit>,
    /// The group in which that is made, from the top of the tree [default: lightv]
    #[arg(long, value_name = "PATH", requires = "jail_cgroup", value_parser = parse_parent)]
    jail_parent_cgroup: Option<PathBuf>,
    /// A file or folder that is in the jail too, to be read: for what requests to the API will name
    #[arg(long, value_name = "PATH", requires = "jail")]
    jail_ro: Vec<PathBuf>,
    /// The same, to be written
    #[arg(long, value_name = "PATH", requires = "jail")]
    jail_rw: Vec<PathBuf>,
}

/// Where the groups of machines are made.
const PARENT_CGROUP: &str = "lightv";

/// See [`Network`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct NetworkArg(Network);

impl FromStr for NetworkArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(match text {
            "new" => Network::Own,
            "host" => Network::Hosts,
            path => Network::Named(path.into()),
        }))
    }
}

impl JailArgs {
    /// The jail, if one is wanted.
    #[must_use]
    pub fn plan(&self) -> Option<JailPlan> {
        let read = self.jail_ro.iter().map(Place::read);
        let write = self.jail_rw.iter().map(Place::write);
        let network = self.jail_netns.as_ref();
        self.jail.then(|| JailPlan {
            uid: self.jail_uid,
            gid: self.jail_gid,
            network: network.map_or_else(Network::default, |network| network.0.clone()),
            limits: self.jail_cgroup.clone(),
            parent_cgroup: self
                .jail_parent_cgroup
                .clone()
                .unwrap_or_else(|| PARENT_CGROUP.into()),
            places: read.chain(write).collect(),
        })
    }

    /// The same for a `lightv-vmm`.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if self.jail {
            words.push("--jail".into());
        }
        let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
        if let Some(uid) = self.jail_uid {
            option("--jail-uid", uid.to_string().into());
        }
        if let Some(gid) = self.jail_gid {
            option("--jail-gid", gid.to_string().into());
        }
        match self.jail_netns.as_ref().map(|network| &network.0) {
            Some(Network::Own) => option("--jail-netns", "new".into()),
            Some(Network::Hosts) => option("--jail-netns", "host".into()),
            Some(Network::Named(path)) => option("--jail-netns", path.into()),
            None => {}
        }
        for limit in &self.jail_cgroup {
            let pair = format!("{}={}", limit.file(), limit.value());
            option("--jail-cgroup", pair.into());
        }
        if let Some(parent) = &self.jail_parent_cgroup {
            option("--jail-parent-cgroup", parent.into());
        }
        for path in &self.jail_ro {
            option("--jail-ro", path.into());
        }
        for path in &self.jail_rw {
            option("--jail-rw", path.into());
        }
        words
    }
}
