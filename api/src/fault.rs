//! How a request is refused.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A refusal, as a client sees it. The machine is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status.
    pub status: FaultStatus,
    /// What is wrong. Clients match parts of it.
    pub message: String,
}

/// HTTP status of a refusal. There are no others: clients know none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultStatus {
    /// 400: whatever is wrong, unknown paths and methods too.
    BadRequest,
    /// 413: the metadata store would be too large.
    PayloadTooLarge,
}

impl FaultStatus {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::PayloadTooLarge => 413,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl Fault {
    /// A refusal with status 400.
    pub fn bad(message: impl Into<String>) -> Self {
        Self {
            status: FaultStatus::BadRequest,
            message: message.into(),
        }
    }

    /// The body of the answer.
    #[must_use]
    pub fn to_json(&self) -> String {
        let body = FaultMessage {
            fault_message: self.message.clone(),
        };
        // A text is always JSON.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

/// Body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FaultMessage {
    /// What is wrong.
    pub fault_message: String,
}

/// Body of an answer to what is no request: bad HTTP, a method that no path has, a body that is too large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransportError {
    /// What is wrong.
    pub error: String,
}

/// What a refusal is about: the first words of its message. They are Firecracker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named like its resource")]
pub enum Area {
    Balloon,
    BootSource,
    CreateSnapshot,
    Fork,
    Cpu,
    Drive,
    Entropy,
    Pmem,
    MemoryHotplug,
    InternalVmm,
    LoadSnapshot,
    Logger,
    Machine,
    Metrics,
    Mmds,
    MmdsLimit,
    MmdsConfig,
    Network,
    Serial,
    Start,
    Vsock,
}

impl Area {
    /// The words.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Balloon => "Balloon config error",
            Self::BootSource => "Boot source error",
            Self::Fork => "Fork error",
            Self::CreateSnapshot => "Create snapshot error",
            Self::Cpu => "Configure CPU error",
            Self::Drive => "Drive config error",
            Self::Entropy => "Entropy config error",
            Self::Pmem => "Pmem config error",
            Self::MemoryHotplug => "Memory hotplug config error",
            Self::InternalVmm => "Internal VMM error",
            Self::LoadSnapshot => "Load snapshot error",
            Self::Logger => "Logger error",
            Self::Machine => "Machine config error",
            Self::Metrics => "Metrics error",
            Self::Mmds => "MMDS error",
            Self::MmdsLimit => "MMDS limit exceeded error",
            // Three Ms: so it is written there.
            Self::MmdsConfig => "MMMDS config error",
            Self::Network => "Network config error",
            Self::Serial => "Serial config error",
            Self::Start => "Start microvm error",
            Self::Vsock => "Vsock config error",
        }
    }

    /// A refusal of this area: 413 for too large a metadata store, else 400.
    pub fn fault(self, cause: impl fmt::Display) -> Fault {
        Fault {
            status: match self {
                Self::MmdsLimit => FaultStatus::PayloadTooLarge,
                _ => FaultStatus::BadRequest,
            },
            message: format!("{}: {cause}", self.prefix()),
        }
    }
}

/// A request that must come before the start came after it.
#[must_use]
pub fn after_start() -> Fault {
    Fault::bad("The requested operation is not supported after starting the microVM.")
}

/// A request that must come after the start came before it.
#[must_use]
pub fn before_start() -> Fault {
    Fault::bad("The requested operation is not supported before starting the microVM.")
}
