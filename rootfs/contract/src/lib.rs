//! What the monitor, `lightv exec`, the host agent and LightV's agent (`rootfs/init`, PID 1 of a Linux guest) say to each other: data, names,
//! and how data become bytes. The control device itself is described in docs/control-device.md.

pub mod agent;
pub mod control;
pub mod exec;
pub mod exec_host;
pub mod ports;

/// Where the agent and its files stand in a root file system.
pub const AGENT_FOLDER: &str = "/.lightv";
/// The agent: `init=` of the kernel's command line.
pub const AGENT_PATH: &str = "/.lightv/init";
/// Where the agent stacks the writable layer; an empty folder in the root file system.
pub const OVERLAY_FOLDER: &str = "/.lightv/overlay";
/// What a program reads to its end to say that it is ready (docs/linux-guest.md, Ready).
pub const READY_PATH: &str = "/run/lightv/ready";
/// Arguments and environment of this run, for a program that was started before they were known: JSON,
/// `{"args": […], "env": {…}}`. There with `doorbell` and `listen`; right when [`READY_PATH`] has ended.
pub const RUN_PATH: &str = "/run/lightv/run.json";
/// The helper that does so, for shells.
pub const READY_HELPER: &str = "/run/lightv/lightv-ready";
