//! What an image says about the program in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How the image's program is started (OCI image configuration, `config`). Empty for folders, tars and ready images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProgramSettings {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// The words that follow unless others are given.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Folder that the program starts in.
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// Ports that the program listens on: `80`, `80/tcp`, `53/udp`.
    pub exposed_ports: Vec<String>,
    /// Signal that asks the program to end: `SIGTERM`, `15`.
    pub stop_signal: Option<String>,
}

impl ProgramSettings {
    /// From an image's configuration. Empty strings mean the same as absent ones; variables without `=` are left out.
    pub(crate) fn of(config: &oci_spec::image::Config) -> Self {
        let text = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
        let env = config.env().iter().flatten();
        let env = env.filter_map(|variable| variable.split_once('='));
        let mut exposed_ports = config.exposed_ports().clone().unwrap_or_default();
        exposed_ports.sort();
        Self {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: env
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            workdir: text(config.working_dir()),
            user: text(config.user()),
            exposed_ports,
            stop_signal: text(config.stop_signal()),
        }
    }
}
