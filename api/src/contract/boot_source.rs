//! `boot-source`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Kernel, initial RAM disk, command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An ELF64 (Linux 64-bit or PVH entry) or a bzImage.
    #[schema(value_type = String)]
    pub kernel_image_path: PathBuf,
    /// Initial RAM disk, loaded as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initrd_path: Option<PathBuf>,
    /// Kernel command line. Default: `reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd
    /// swiotlb=noforce`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// LightV's own: `auto` (default: Linux's own entry for a Linux, else PVH where an ELF offers it), `linux`, `pvh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_protocol: Option<String>,
    /// LightV's own: whether a Linux kernel is given the options that it needs on software KVM, on such a host. Default:
    /// yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub software_kvm_options: Option<bool>,
}

/// Kernel command line when none is given: Firecracker's default.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux \
    i8042.nomux i8042.dumbkbd swiotlb=noforce";
