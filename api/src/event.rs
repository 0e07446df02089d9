//! LightV's own: what happens to a machine, as `GET /events` tells it (docs/events.md).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that has happened: the `data` of a server-sent event. Its number is the event's `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmEvent {
    /// When, in microseconds since 1970, by the host's clock.
    pub time_unix_us: u64,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What has happened. The field `event` has the same name as the server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// The machine was booted: its vCPUs run.
    Started,
    /// The machine was restored from a snapshot.
    Loaded {
        /// Whether it stands still until it is resumed.
        paused: bool,
    },
    /// The guest has rung the doorbell `READY` for the first time.
    Ready,
    /// The machine stands still.
    Paused,
    /// The machine goes on.
    Resumed,
    /// The machine was saved.
    Saved {
        /// The state file, or the image.
        #[schema(value_type = String)]
        path: PathBuf,
    },
    /// The guest has said that it panics.
    GuestPanic,
    /// A device has given up on its driver, which must reset it.
    DeviceNeedsReset {
        /// Id of the device.
        device: String,
    },
    /// The machine has ended, and the process is about to.
    Ended {
        /// The process's exit status.
        status: u8,
        /// Why.
        reason: String,
    },
    /// Not kept, and without an id: events that this reader was too slow for, or too late.
    Missed {
        /// How many.
        count: u64,
    },
}

impl Happening {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Loaded { .. } => "loaded",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Saved { .. } => "saved",
            Self::GuestPanic => "guest-panic",
            Self::DeviceNeedsReset { .. } => "device-needs-reset",
            Self::Ended { .. } => "ended",
            Self::Missed { .. } => "missed",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_has_its_name_in_its_data_and_comes_back() {
        let device = "net0".to_owned();
        let path = PathBuf::from("a.state");
        let reason = "it powered off".to_owned();
        for what in [
            Happening::Started,
            Happening::Loaded { paused: true },
            Happening::Ready,
            Happening::Paused,
            Happening::Resumed,
            Happening::Saved { path },
            Happening::GuestPanic,
            Happening::DeviceNeedsReset { device },
            Happening::Ended { status: 3, reason },
            Happening::Missed { count: 7 },
        ] {
            let event = VmEvent {
                time_unix_us: 5,
                what,
            };
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["event"], event.what.name());
            assert_eq!(json["time_unix_us"], 5);
            let again: VmEvent = serde_json::from_value(json).unwrap();
            assert_eq!(again, event);
        }
    }

    #[test]
    fn the_data_is_flat() {
        let reason = "it powered off".to_owned();
        let event = VmEvent {
            time_unix_us: 5,
            what: Happening::Ended { status: 3, reason },
        };
        let json =
            json!({"time_unix_us": 5, "event": "ended", "status": 3, "reason": "it powered off"});
        assert_eq!(serde_json::to_value(&event).unwrap(), json);
    }
}
