//! `--inspect-pid`: memory, threads and open files of a running VM, as the kernel sees them.

use std::fs;
use std::io;
use std::path::PathBuf;

use lightv_api::describe::{ProcessDescription, ProcessDetails};

use crate::metrics::kib_of;

/// Why a process could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Not there, or not ours.
    #[error("Cannot read {}; is {pid} a running process of yours?", path.display())]
    Read {
        /// Which process.
        pid: u32,
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// Another program.
    #[error("Process {pid} is `{name}`, not lightv-vmm")]
    NotAVm {
        /// Which process.
        pid: u32,
        /// Its name.
        name: String,
    },
}

impl InspectError {
    /// Whether somebody else may see it.
    fn is_denied(&self) -> bool {
        matches!(self, Self::Read { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// What a VM's process takes, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory, the guest's included, in KiB.
    pub resident_kib: u64,
    /// Threads, KVM's included.
    pub threads: usize,
    /// What root alone is told.
    pub details: Option<UsageDetails>,
}

/// What root alone is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageDetails {
    /// Whose memory it is.
    pub memory: Memory,
    /// Open descriptors.
    pub open_files: usize,
}

/// What process `pid` takes. Who is not root sees less of it.
///
/// # Errors
/// [`InspectError`].
pub fn usage(pid: u32) -> Result<Usage, InspectError> {
    let process = Inspected::of(pid)?;
    Ok(Usage {
        resident_kib: process.resident_kib()?,
        threads: process.list("task")?.count(),
        details: process.details()?.map(|(memory, files)| UsageDetails {
            memory,
            open_files: files.count(),
        }),
    })
}

/// Looks at process `pid`. Who is not root sees less of it.
///
/// # Errors
/// [`InspectError`].
pub fn inspect(pid: u32) -> Result<ProcessDescription, InspectError> {
    let process = Inspected::of(pid)?;
    let threads = process
        .list("task")?
        .filter_map(|path| fs::read_to_string(path.join("comm")).ok());
    let threads = threads.map(|name| name.trim_end().to_owned()).collect();
    let details = process.details()?.map(|(memory, files)| {
        let files = files.filter_map(|path| fs::read_link(path).ok());
        ProcessDetails {
            own_pss_kib: memory.own_pss_kib,
            guest_pss_kib: memory.guest_pss_kib,
            guest_private_kib: memory.guest_private_kib,
            open_files: files.map(|path| path.display().to_string()).collect(),
        }
    });
    Ok(ProcessDescription {
        pid,
        resident_kib: process.resident_kib()?,
        threads,
        details,
    })
}

/// A VM's process, by its files in proc.
struct Inspected(u32);

impl Inspected {
    fn of(pid: u32) -> Result<Self, InspectError> {
        let process = Self(pid);
        let name = process.read("comm")?.trim_end().to_owned();
        if name != "lightv-vmm" {
            return Err(InspectError::NotAVm { pid, name });
        }
        Ok(process)
    }

    fn read(&self, name: &str) -> Result<String, InspectError> {
        let path = self.path(name);
        fs::read_to_string(&path).map_err(|cause| self.unread(path, cause))
    }

    fn list(&self, name: &str) -> Result<impl Iterator<Item = PathBuf>, InspectError> {
        let path = self.path(name);
        let entries = fs::read_dir(&path).map_err(|cause| self.unread(path, cause))?;
        Ok(entries.flatten().map(|entry| entry.path()))
    }

    fn path(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.0).into()
    }

    fn unread(&self, path: PathBuf, cause: io::Error) -> InspectError {
        let pid = self.0;
        InspectError::Read { pid, path, cause }
    }

    /// Everybody can read it.
    fn resident_kib(&self) -> Result<u64, InspectError> {
        Ok(kib_of(&self.read("status")?, "VmRSS:").unwrap_or(0))
    }

    /// Memory, and paths of descriptors; `None` where this user may not know.
    fn details(&self) -> Result<Option<(Memory, impl Iterator<Item = PathBuf>)>, InspectError> {
        match (self.read("smaps"), self.list("fd")) {
            (Ok(smaps), Ok(files)) => Ok(Some((sum_mappings(&smaps), files))),
            (Err(error), _) | (_, Err(error)) if !error.is_denied() => Err(error),
            _ => Ok(None),
        }
    }
}

/// Whose a process's memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// The monitor's own, its share of what several processes have, in KiB.
    pub own_pss_kib: u64,
    /// The guest's that the host holds, its share of what clones have together, in KiB.
    pub guest_pss_kib: u64,
    /// Of the guest's, what this VM alone has, in KiB.
    pub guest_private_kib: u64,
}

/// Sums up `/proc/PID/smaps` (Documentation/filesystems/proc.rst). Guest RAM is what is kept out of core dumps (`dd`)
/// and belongs to no driver: see `GuestRam::exclude_from_core_dumps`.
fn sum_mappings(smaps: &str) -> Memory {
    let mut memory = Memory::default();
    let (mut pss, mut private, mut is_special) = (0, 0, false);
    let kib = |rest: &str| {
        let number = rest.trim_start().split(' ').next();
        number.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0)
    };
    for line in smaps.lines() {
        // The first line of a mapping: `start-end flags offset device inode path`. Names of fields begin with a capital letter.
        if !line.starts_with(|first: char| first.is_ascii_uppercase()) {
            let path = line.split_whitespace().nth(5).unwrap_or_default();
            is_special = path.starts_with('[') || path.starts_with("anon_inode:");
        } else if let Some(rest) = line.strip_prefix("Pss:") {
            pss = kib(rest);
        } else if let Some(rest) = line.strip_prefix("Private_Dirty:") {
            private = kib(rest);
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            // The last line of a mapping.
            if !is_special && flags.split(' ').any(|flag| flag == "dd") {
                memory.guest_pss_kib += pss;
                memory.guest_private_kib += private;
            } else {
                memory.own_pss_kib += pss;
            }
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_from_the_monitors_own_memory() {
        let smaps = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \n\
Pss:                 100 kB\nPrivate_Dirty:        90 kB\nVmFlags: rd wr mr mw me nr dd \n\
7f0008000000-7f0008100000 rw-p 00001000 fe:00 77 /tmp/a.lv\n\
Pss:                  20 kB\nPrivate_Dirty:         4 kB\nVmFlags: rd wr dd \n\
55d000000000-55d000100000 r-xp 00000000 fe:00 78 /usr/bin/lightv-vmm\n\
Pss:                   7 kB\nPrivate_Dirty:         1 kB\nVmFlags: rd ex \n\
7f0009000000-7f0009003000 rw-s 00000000 00:0e 9 anon_inode:kvm-vcpu:0\n\
Pss:                   3 kB\nPrivate_Dirty:         0 kB\nVmFlags: rd wr sh dd \n";
        let expected = Memory {
            own_pss_kib: 10,
            guest_pss_kib: 120,
            guest_private_kib: 94,
        };
        assert_eq!(sum_mappings(smaps), expected);
    }

    #[test]
    fn a_process_that_is_none_or_another_program_is_refused() {
        assert!(matches!(inspect(u32::MAX), Err(InspectError::Read { .. })));
        assert!(matches!(
            inspect(std::process::id()),
            Err(InspectError::NotAVm { .. })
        ));
    }
}
