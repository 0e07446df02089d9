//! Saved form of the balloon.

use serde::{Deserialize, Serialize};

pub use super::stats::StatV1;

/// Saved balloon, version 1. Never edit: add `BalloonStateV2`.
///
/// What the user has set (the size that is wanted, the interval, what is offered) is in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStateV1 {
    /// Pages in the balloon, as the driver last told.
    pub actual_pages: u32,
    /// Where hinting stands.
    pub hinting: HintingStateV1,
    /// The last report of the driver, by ascending tag.
    pub stats: Vec<StatV1>,
}

/// Where hinting stands, version 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintingStateV1 {
    /// What the driver was last told: 0 nothing, 1 done, else the number of a run.
    pub host_cmd: u32,
    /// What the driver last told.
    pub guest_cmd: Option<u32>,
    /// The number of the last run, 0 if there was none.
    pub last_run: u32,
    /// The run ends by itself once the driver has told all.
    pub acknowledge_on_stop: bool,
}
