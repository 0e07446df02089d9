//! Flags for log and metrics, by Firecracker's names.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lightv_api::contract::logger::{LogFormat, LogLevel, LoggerSpec};
use lightv_api::contract::metrics::MetricsSpec;
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::Error;

use crate::outputs::Outputs;

/// See `Cli`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log and metrics")]
pub(super) struct OutputArgs {
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
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    let level = LogLevel::deserialize(text.into_deserializer());
    level.map_err(|error: Error| error.to_string())
}

impl OutputArgs {
    /// What was asked for.
    pub(super) fn outputs(&self) -> Outputs {
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
}
