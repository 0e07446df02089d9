//! The flags of Firecracker's jailer, for a program that is called `jailer`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use super::{name_of, parse_id};
use crate::jail_plan::{JailerPlan, Limit, ResourceLimit, Version, parse_parent};

/// Runs a monitor in a jail, by the flags of Firecracker's jailer.
///
/// The jail's root is CHROOT_BASE_DIR/NAME/ID/root, with NAME that of the monitor's file; what the machine needs is placed
/// there by whoever starts it. The monitor is run by its descriptor, and not copied. It serves its API in the jail, at
/// /run/firecracker.socket unless its arguments say otherwise. A jail without root, and without such a folder:
/// lightv-vmm --jail.
#[derive(Debug, Parser)]
#[command(name = "jailer", version, after_long_help = EXAMPLES)]
pub struct JailerCli {
    /// Name of the VM: 1–64 letters, digits and `-`.
    #[arg(long, value_parser = parse_id)]
    id: String,
    /// The monitor: a static program, such as lightv-vmm under the name of firecracker.
    #[arg(long, value_name = "FILE")]
    exec_file: PathBuf,
    /// The user that the monitor becomes.
    #[arg(long)]
    uid: u32,
    /// The group that the monitor becomes.
    #[arg(long)]
    gid: u32,
    /// The folder with all jails.
    #[arg(long, value_name = "DIR", default_value = "/srv/jailer")]
    chroot_base_dir: PathBuf,
    /// The network name space that the monitor is in.
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// Leave the monitor alone, in a session of its own and without standard streams, once it runs.
    #[arg(long)]
    daemonize: bool,
    /// Give the monitor a process name space of its own, and leave it alone once it runs.
    #[arg(long)]
    new_pid_ns: bool,
    /// Limit the monitor by a file of its control group.
    #[arg(long, value_name = "FILE=VALUE")]
    cgroup: Vec<Limit>,
    /// Version of the control groups: 1 or 2.
    #[arg(long, value_name = "VERSION", default_value = "1", value_parser = parse_version)]
    cgroup_version: Version,
    /// The group in which that is made, from the top of the tree [default: NAME]. With version 2 and no --cgroup the
    /// monitor is put into this group, which must be there.
    #[arg(long, value_name = "PATH", value_parser = parse_parent)]
    parent_cgroup: Option<PathBuf>,
    /// Limit the monitor's files: fsize=BYTES of each, no-file=COUNT of open ones [default: no-file=2048].
    #[arg(long, value_name = "LIMIT=VALUE")]
    resource_limit: Vec<ResourceLimit>,
    /// Arguments of the monitor.
    #[arg(last = true)]
    args: Vec<OsString>,
}

const EXAMPLES: &str = "\
Example:
  jailer --id vm7 --exec-file /usr/bin/firecracker --uid 1007 --gid 1007 -- --config-file vm.json";

fn parse_version(text: &str) -> Result<Version, String> {
    match text {
        "1" => Ok(Version::V1),
        "2" => Ok(Version::V2),
        _ => Err("1 and 2 are allowed".to_owned()),
    }
}

/// Whether a program of this name is to be Firecracker's jailer to its caller.
#[must_use]
pub fn is_jailer(program: Option<&OsString>) -> bool {
    name_of(program).is_some_and(|name| name == "jailer")
}

impl From<JailerCli> for JailerPlan {
    fn from(cli: JailerCli) -> Self {
        Self {
            id: cli.id,
            exec_file: cli.exec_file,
            uid: cli.uid,
            gid: cli.gid,
            chroot_base: cli.chroot_base_dir,
            netns: cli.netns,
            daemonize: cli.daemonize,
            new_pid_ns: cli.new_pid_ns,
            limits: cli.cgroup,
            cgroup_version: cli.cgroup_version,
            parent_cgroup: cli.parent_cgroup,
            resource_limits: cli.resource_limit,
            args: cli.args,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(line: &str) -> Result<JailerPlan, clap::Error> {
        let words = line.split_whitespace();
        JailerCli::try_parse_from(words).map(JailerPlan::from)
    }

    const NEEDED: &str = "jailer --id a --exec-file f --uid 1 --gid 2";

    #[test]
    fn the_flags_are_firecrackers() {
        let plan = parse(NEEDED).unwrap();
        assert_eq!(plan.chroot_base, Path::new("/srv/jailer"));
        assert_eq!((plan.uid, plan.gid), (1, 2));
        assert_eq!(plan.cgroup_version, Version::V1);
        let more = "--netns n --daemonize --new-pid-ns --cgroup cpu.shares=5 --cgroup pids.max=9 \
            --cgroup-version 2 --parent-cgroup p/q --resource-limit fsize=1 --resource-limit no-file=2 \
            --chroot-base-dir b -- --config-file vm.json --no-api";
        let plan = parse(&format!("{NEEDED} {more}")).unwrap();
        assert_eq!(plan.limits.len(), 2);
        assert_eq!(plan.parent_cgroup, Some("p/q".into()));
        assert_eq!(plan.args, ["--config-file", "vm.json", "--no-api"]);
        assert!(plan.daemonize && plan.new_pid_ns);
    }

    #[test]
    fn bad_flags_are_refused() {
        for more in [
            "--id a/b",
            "--uid -1",
            "--uid x",
            "--cgroup memory",
            "--cgroup ../x.y=1",
            "--cgroup-version 3",
            "--parent-cgroup ../x",
            "--parent-cgroup /x",
            "--resource-limit core=1",
            "--node 0",
            "stray",
        ] {
            assert!(parse(&format!("{NEEDED} {more}")).is_err(), "{more}");
        }
        for missing in ["--id a", "--exec-file f", "--uid 1", "--gid 2"] {
            assert!(parse(&NEEDED.replace(missing, "")).is_err(), "{missing}");
        }
    }
}
