//! What the operator can change of a server.

use std::time::Duration;

use crate::limits;

/// Limits that can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// See [`limits::BODY_BYTES_MAX`].
    pub body_bytes_max: usize,
    /// See [`limits::CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// See [`limits::REQUEST_TIME_MAX`].
    pub request_time_max: Duration,
    /// See [`limits::IDLE_TIME_MAX`].
    pub idle_time_max: Duration,
    /// See [`limits::EVENT_STREAMS_MAX`].
    pub event_streams_max: usize,
    /// See [`limits::HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`limits::STREAM_STALL_TIME_MAX`].
    pub stream_stall_time_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            body_bytes_max: limits::BODY_BYTES_MAX,
            connections_max: limits::CONNECTIONS_MAX,
            request_time_max: limits::REQUEST_TIME_MAX,
            idle_time_max: limits::IDLE_TIME_MAX,
            event_streams_max: limits::EVENT_STREAMS_MAX,
            heartbeat: limits::HEARTBEAT,
            stream_stall_time_max: limits::STREAM_STALL_TIME_MAX,
        }
    }
}
