//! What the process takes away from itself before it touches anything of the guest.

use std::io;

use crate::sys::process;

/// Why the process could not limit itself.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what}")]
pub struct SandboxError {
    /// Which limit.
    what: &'static str,
    /// The kernel's reason.
    #[source]
    cause: io::Error,
}

/// No new privileges by exec; no core files, which would hold what the guest held, and no debugger of the same user.
///
/// # Errors
/// [`SandboxError`].
pub fn enter() -> Result<(), SandboxError> {
    let failed = |what| move |cause| SandboxError { what, cause };
    process::set_no_new_privileges()
        .map_err(failed("give up new privileges (PR_SET_NO_NEW_PRIVS)"))?;
    process::forbid_core_files().map_err(failed("forbid core files (RLIMIT_CORE)"))?;
    process::forbid_dumps().map_err(failed("keep its memory to itself (PR_SET_DUMPABLE)"))
}
