//! Names of requests, for metrics and logs: as many as there are, whatever clients send.

use super::Request;

/// What a request is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Its method.
    pub method: &'static str,
    /// Its path, with `{id}` in place of ids.
    pub path: &'static str,
}

impl Route {
    /// What was refused before it was known what it is.
    pub const UNKNOWN: Self = Self::new("-", "-");

    const fn new(method: &'static str, path: &'static str) -> Self {
        Self { method, path }
    }
}

impl Request {
    /// What it is called.
    #[must_use]
    pub const fn route(&self) -> Route {
        match self {
            Self::GetInfo => Route::new("GET", "/"),
            Self::GetVersion => Route::new("GET", "/version"),
            Self::GetMachine => Route::new("GET", "/machine-config"),
            Self::GetFullConfig => Route::new("GET", "/vm/config"),
            Self::GetBalloon => Route::new("GET", "/balloon"),
            Self::GetBalloonStats => Route::new("GET", "/balloon/statistics"),
            Self::GetHintingStatus => Route::new("GET", "/balloon/hinting/status"),
            Self::GetMmds => Route::new("GET", "/mmds"),
            Self::GetMemoryHotplug => Route::new("GET", "/hotplug/memory"),
            Self::GetPrometheus => Route::new("GET", "/metrics"),
            Self::GetEvents => Route::new("GET", "/events"),
            Self::Act(_) => Route::new("PUT", "/actions"),
            Self::PutBootSource(_) => Route::new("PUT", "/boot-source"),
            Self::PutMachine(_) => Route::new("PUT", "/machine-config"),
            Self::PatchMachine(_) => Route::new("PATCH", "/machine-config"),
            Self::PutCpu(_) => Route::new("PUT", "/cpu-config"),
            Self::PutDrive(_) => Route::new("PUT", "/drives/{id}"),
            Self::PatchDrive(_) => Route::new("PATCH", "/drives/{id}"),
            Self::OrderOverlay(..) => Route::new("PUT", "/drives/{id}/overlay"),
            Self::DeleteDrive(_) => Route::new("DELETE", "/drives/{id}"),
            Self::PutPmem(_) => Route::new("PUT", "/pmem/{id}"),
            Self::PatchPmem(_) => Route::new("PATCH", "/pmem/{id}"),
            Self::DeletePmem(_) => Route::new("DELETE", "/pmem/{id}"),
            Self::PutNet(_) => Route::new("PUT", "/network-interfaces/{id}"),
            Self::PatchNet(_) => Route::new("PATCH", "/network-interfaces/{id}"),
            Self::DeleteNet(_) => Route::new("DELETE", "/network-interfaces/{id}"),
            Self::PutVsock(_) => Route::new("PUT", "/vsock"),
            Self::PutBalloon(_) => Route::new("PUT", "/balloon"),
            Self::PatchBalloon(_) => Route::new("PATCH", "/balloon"),
            Self::PatchBalloonStats(_) => Route::new("PATCH", "/balloon/statistics"),
            Self::StartHinting(_) => Route::new("PATCH", "/balloon/hinting/start"),
            Self::StopHinting => Route::new("PATCH", "/balloon/hinting/stop"),
            Self::PutEntropy(_) => Route::new("PUT", "/entropy"),
            Self::PutSerial(_) => Route::new("PUT", "/serial"),
            Self::PutLogger(_) => Route::new("PUT", "/logger"),
            Self::PutMetrics(_) => Route::new("PUT", "/metrics"),
            Self::PutMmdsConfig(_) => Route::new("PUT", "/mmds/config"),
            Self::PutMmds(_) => Route::new("PUT", "/mmds"),
            Self::PatchMmds(_) => Route::new("PATCH", "/mmds"),
            Self::PutMemoryHotplug(_) => Route::new("PUT", "/hotplug/memory"),
            Self::PatchMemoryHotplug(_) => Route::new("PATCH", "/hotplug/memory"),
            Self::PatchVm(_) => Route::new("PATCH", "/vm"),
            Self::Fork(_) => Route::new("PUT", "/fork"),
            Self::CreateSnapshot(_) => Route::new("PUT", "/snapshot/create"),
            Self::LoadSnapshot(_) => Route::new("PUT", "/snapshot/load"),
        }
    }
}
