//! Programs that the agent starts in the guest of a sandbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /sandboxes/{id}/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {
    /// The program and its arguments: at least one word. A name without `/` is looked for in `PATH`.
    pub args: Vec<String>,
    /// Added to the environment of the sandbox's own program, or replaced by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Folder that it starts in. Default: that of the sandbox's own program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Who runs it, `USER[:GROUP]`. Default: who runs the sandbox's own program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its input, as text. Without any it reads the end of it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Its input, in base64: any bytes. This, or `stdin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_base64: Option<String>,
    /// Milliseconds that it may run, 1–86,400,000: then its process group gets SIGKILL. Default: as long as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub timeout_ms: Option<u64>,
}

/// A line of the answer to `POST /sandboxes/{id}/exec`. `ended` or `failed` is the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecLine {
    /// Output, as text.
    Stdout(String),
    /// Output that is no UTF-8, or has NUL characters in it, in base64.
    StdoutBase64(String),
    /// As `stdout`.
    Stderr(String),
    /// As `stdout_base64`.
    StderrBase64(String),
    /// The program has ended.
    Ended(ExecEnd),
    /// It is not known how the program has ended, and why.
    Failed(String),
}

/// How a program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecEnd {
    /// Its exit status; 128 + N when signal N has ended it.
    pub exit_code: u8,
    /// Whether it was sent SIGKILL because its time was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
}
