//! The log: lines of text in Firecracker's form, or of JSON, to a file, a FIFO or standard error.
//!
//! Nothing is set up until somebody asks for it, and nothing waits for the reader: lines that a FIFO does not take are left
//! out and counted. What a guest can cause is said a few times at most ([`crate::report`] and the devices see to that).

use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::SystemTime;

use lightv_api::contract::logger::{LogFormat, LogLevel, LoggerSpec};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, dynamic_filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::lock::lock;
use crate::sink::LineSink;
use crate::sys::file::StandardStream;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("Cannot open the log {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
}

/// How lines are written.
struct Settings {
    id: String,
    sink: Option<LineSink>,
    level: LevelFilter,
    show_level: bool,
    show_log_origin: bool,
    module: Option<String>,
    format: LogFormat,
    /// Lines that were left out since the last that was written.
    missed: u64,
}

static SETTINGS: Mutex<Option<Settings>> = Mutex::new(None);
static INSTALLED: OnceLock<()> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines that were left out since the process began.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Logs by `spec` from now on, for the machine called `id`. May be called again.
///
/// # Errors
/// [`LogError`]; the log goes on as before.
pub fn configure(spec: &LoggerSpec, id: &str) -> Result<(), LogError> {
    let sink = match &spec.log_path {
        Some(path) => Some(LineSink::open(path).map_err(|cause| LogError::Open {
            path: path.clone(),
            cause,
        })?),
        None => None,
    };
    *lock(&SETTINGS) = Some(Settings {
        id: id.to_owned(),
        sink,
        level: filter(spec.level.unwrap_or(LogLevel::Info)),
        show_level: spec.show_level.unwrap_or(false),
        show_log_origin: spec.show_log_origin.unwrap_or(false),
        module: spec.module.clone(),
        format: spec.format.unwrap_or_default(),
        missed: 0,
    });
    INSTALLED.get_or_init(|| {
        let wanted = dynamic_filter_fn(|metadata, _| is_wanted(metadata));
        let subscriber = tracing_subscriber::registry().with(Lines.with_filter(wanted));
        // Nobody else in this process has one.
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
    Ok(())
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn is_wanted(metadata: &Metadata<'_>) -> bool {
    let settings = lock(&SETTINGS);
    settings.as_ref().is_some_and(|settings| {
        let is_of_module = settings.module.as_deref().is_none_or(|module| {
            metadata
                .module_path()
                .is_some_and(|path| path.starts_with(module))
        });
        *metadata.level() <= settings.level && is_of_module
    })
}

/// Writes each event as a line.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(settings) = &mut *lock(&SETTINGS) {
            let line = match settings.format {
                LogFormat::Text => text_line(settings, event.metadata(), &fields),
                LogFormat::Json => json_line(settings, event.metadata(), fields),
            };
            settings.write(&line);
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => drop(self.others.insert(name.to_owned(), text.into())),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => drop(self.others.insert(name.to_owned(), value.into())),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.insert(field.name().to_owned(), value.into());
    }
}

/// `2026-11-29T07:00:00.123456789 [id:thread:LEVEL:file:line] message name=value`.
fn text_line(settings: &Settings, metadata: &Metadata<'_>, fields: &Fields) -> String {
    let mut line = format!("{} [{}:{}", utc_now(), settings.id, thread_name());
    // Writing into a text cannot fail.
    if settings.show_level {
        let _ = write!(line, ":{}", metadata.level());
    }
    if settings.show_log_origin {
        let (file, number) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
        let _ = write!(line, ":{file}:{number}");
    }
    line.push_str("] ");
    push_plain(&mut line, &fields.message);
    for (name, value) in &fields.others {
        let _ = write!(line, " {name}=");
        match value {
            Value::String(text) => push_plain(&mut line, text),
            other => drop(write!(line, "{other}")),
        }
    }
    line.push('\n');
    line
}

/// An event is one line, whatever is in it.
fn push_plain(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

fn json_line(settings: &Settings, metadata: &Metadata<'_>, fields: Fields) -> String {
    let mut line = Map::new();
    let mut add = |name: &str, value: Value| drop(line.insert(name.to_owned(), value));
    add("time", format!("{}Z", utc_now()).into());
    add("id", settings.id.clone().into());
    add("thread", thread_name().into());
    add("level", metadata.level().as_str().into());
    if settings.show_log_origin {
        add("file", metadata.file().unwrap_or("?").into());
        add("line", metadata.line().unwrap_or(0).into());
    }
    add("message", fields.message.into());
    for (name, value) in fields.others {
        line.entry(name).or_insert(value);
    }
    let mut text = Value::from(line).to_string();
    text.push('\n');
    text
}

/// `2026-11-29T07:00:00.123456789`, UTC.
fn utc_now() -> String {
    let text = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    text.trim_end_matches('Z').to_owned()
}

fn thread_name() -> String {
    thread::current().name().unwrap_or("?").to_owned()
}

impl Settings {
    fn write(&mut self, line: &str) {
        let Some(sink) = &mut self.sink else {
            // Standard error that cannot be written to is no reason to stop.
            let _ = io::Write::write_all(&mut StandardStream::Stderr, line.as_bytes());
            return;
        };
        if self.missed > 0 {
            let gap = format!(
                "{} [{}] {} lines were left out: nobody read them in time\n",
                utc_now(),
                self.id,
                self.missed
            );
            if self.format == LogFormat::Json || sink.write(gap.as_bytes()) {
                self.missed = 0;
            }
        }
        if !sink.write(line.as_bytes()) {
            self.missed += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}
