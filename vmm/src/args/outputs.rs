//! Flags for log and metrics, by Firecracker's names.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lightv_api::contract::logger::{LogFormat, LogLevel, LoggerSpec};
use lightv_api::contract::metrics::MetricsSpec;
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::Error;

use crate::outputs::Outputs;

/// Where log and metrics go, for whoever starts a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Log and metrics (docs/logs.md, docs/metrics.md)")]
pub struct OutputArgs {
    /// Log into this file or FIFO; standard error with one of the other flags alone.
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,
    /// What is logged: Off, Error, Warning, Info, Debug, Trace [default: Info].
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    level: Option<LogLevel>,
    /// Log only what this module says, for example lightv_vmm::rest.
    #[arg(long, value_name = "MODULE")]
    module: Option<String>,
    /// Each line of the log says its level.
    #[arg(long)]
    show_level: bool,
    /// Each line of the log says where in the source it comes from.
    #[arg(long)]
    show_log_origin: bool,
    /// How lines of the log are written [default: text].
    #[arg(long, value_name = "FORM")]
    log_format: Option<Format>,
    /// Write metrics into this file or FIFO, every 60 seconds and at the end.
    #[arg(long, value_name = "PATH")]
    metrics_path: Option<PathBuf>,
}

/// See [`LogFormat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    let level = LogLevel::deserialize(text.into_deserializer());
    level.map_err(|error: Error| error.to_string())
}

impl OutputArgs {
    /// What was asked for.
    #[must_use]
    pub fn outputs(&self) -> Outputs {
        let logger = LoggerSpec {
            log_path: self.log_path.clone(),
            level: self.level,
            show_level: self.show_level.then_some(true),
            show_log_origin: self.show_log_origin.then_some(true),
            module: self.module.clone(),
            format: self.log_format.map(|format| match format {
                Format::Text => LogFormat::Text,
                Format::Json => LogFormat::Json,
            }),
        };
        Outputs {
            logger: (logger != LoggerSpec::default()).then_some(logger),
            metrics: self.metrics_path.clone().map(|metrics_path| MetricsSpec {
                metrics_path,
                ..MetricsSpec::default()
            }),
        }
    }

    /// The same for another `lightv-vmm`.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        let level = self.level.map(LogLevel::name);
        let format = self.log_format.map(Format::name);
        let path = |path: &Option<PathBuf>| path.clone().map(PathBuf::into_os_string);
        let values = [
            ("--log-path", path(&self.log_path)),
            ("--level", level.map(OsString::from)),
            ("--module", self.module.clone().map(OsString::from)),
            ("--log-format", format.map(OsString::from)),
            ("--metrics-path", path(&self.metrics_path)),
        ];
        let values = values
            .into_iter()
            .filter_map(|(name, value)| Some([OsString::from(name), value?]));
        let switches = [
            ("--show-level", self.show_level),
            ("--show-log-origin", self.show_log_origin),
        ];
        let switches = switches.into_iter().filter(|(_, is_given)| *is_given);
        let switches = switches.map(|(name, _)| OsString::from(name));
        values.flatten().chain(switches).collect()
    }
}
