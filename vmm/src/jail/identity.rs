//! Who a process in a jail is, and what it may.

use std::fs;

use rustix::fs::{Gid, Uid};
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags, capabilities,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::JailError;
use crate::sys::jail::unshare;

/// User and group of the process in the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// Whether the process has the privileges that a jail takes; else it has them in a user name space of its own.
    pub(super) is_privileged: bool,
}

impl Identity {
    /// The one that was asked for; without a word, that of this process.
    ///
    /// # Errors
    /// [`JailError::NotRoot`].
    pub(super) fn of(uid: Option<u32>, gid: Option<u32>) -> Result<Self, JailError> {
        let (own_uid, own_gid) = (geteuid(), getegid());
        let uid = uid.map_or(own_uid, Uid::from_raw);
        let gid = gid.map_or(own_gid, Gid::from_raw);
        let effective = capabilities(None).map(|sets| sets.effective);
        let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID;
        let is_privileged = effective.is_ok_and(|effective| effective.contains(needed));
        if !is_privileged && (uid, gid) != (own_uid, own_gid) {
            return Err(JailError::NotRoot {
                uid: own_uid.as_raw(),
                gid: own_gid.as_raw(),
            });
        }
        Ok(Self {
            uid,
            gid,
            is_privileged,
        })
    }

    /// A user name space in which this user has all privileges, over what is made in it alone. Nobody else is in it.
    ///
    /// # Errors
    /// [`JailError`].
    pub(super) fn enter_user_name_space(self) -> Result<(), JailError> {
        unshare(UnshareFlags::NEWUSER).map_err(JailError::UserNameSpace)?;
        let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
        // Without this no unprivileged user may map a group: user_namespaces(7).
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("gid_map", format!("{gid} {gid} 1")),
            ("uid_map", format!("{uid} {uid} 1")),
        ] {
            fs::write(format!("/proc/self/{file}"), text)
                .map_err(JailError::step_of("map user and group into its name space"))?;
        }
        Ok(())
    }

    /// Becomes it, without any capability and without a way to one.
    ///
    /// # Errors
    /// [`JailError`].
    pub(super) fn assume(self) -> Result<(), JailError> {
        let locked = CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
        set_capabilities_secure_bits(locked)
            .map_err(JailError::step("lock capabilities (PR_SET_SECUREBITS)"))?;
        for capability in CapabilitySet::all().iter() {
            // One that this kernel does not know is none.
            let _ = remove_capability_from_bounding_set(capability);
        }
        if self.is_privileged {
            set_thread_groups(&[]).map_err(JailError::step("leave all groups"))?;
            let (uid, gid) = (self.uid, self.gid);
            set_thread_res_gid(gid, gid, gid)
                .map_err(JailError::step("become its group (--jail-gid)"))?;
            set_thread_res_uid(uid, uid, uid)
                .map_err(JailError::step("become its user (--jail-uid)"))?;
        }
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).map_err(JailError::step("give up capabilities"))?;
        // A change of user makes a process's own entries of proc root's. There are no core files all the same.
        set_dumpable_behavior(DumpableBehavior::Dumpable)
            .map_err(JailError::step("keep its own entries of proc"))
    }
}
