//! Random bytes of the host.

use std::io;

/// Fills `target`.
///
/// # Errors
/// The kernel's: in practice none since the host has booted.
pub(crate) fn fill(target: &mut [u8]) -> io::Result<()> {
    let mut rest = target;
    while !rest.is_empty() {
        // SAFETY: `rest` is borrowed exclusively over the call, and its length is given.
        let result = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(result) {
            Ok(got) => rest = rest.get_mut(got..).unwrap_or_default(),
            Err(_) => {
                let cause = io::Error::last_os_error();
                if cause.kind() != io::ErrorKind::Interrupted {
                    return Err(cause);
                }
            }
        }
    }
    Ok(())
}
