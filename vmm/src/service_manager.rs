//! The service manager that has started this process, if it is one that wants to be told.

use crate::report;

/// `READY=1` to a service manager that has asked to be told (sd_notify(3)). One that cannot be reached is no reason not to
/// serve.
pub fn tell_ready() {
    if let Err(cause) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        report::say(&format!(
            "cannot tell the service manager (NOTIFY_SOCKET) that the API is served: {cause}"
        ));
    }
}
