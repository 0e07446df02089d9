//! From a request to what can be started: everything is proved before anything is done.

use std::collections::BTreeMap;
use std::ffi::OsString;

use lightv_api::agent::sandbox::{ForkSandboxSpec, Sandbox, SandboxSpec, SandboxState, WarmUse};
use lightv_launch::monitor::is_name;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::agent::Agent;
use crate::clock::unix_ms;
use crate::host;
use crate::images::HeldImage;
use crate::limits;
use crate::refusal::Refusal;

/// A sandbox that can be started.
#[derive(Debug)]
pub struct Plan {
    /// As it will be written down.
    pub sandbox: Sandbox,
    /// Its image, whose file stays until the monitor has it open.
    pub image: HeldImage,
    spec: SandboxSpec,
}

impl Plan {
    /// What `spec` asks for.
    ///
    /// # Errors
    /// 400, 404, 409, 429 or 507: what is wrong, and what is allowed.
    pub fn prove(agent: &Agent, spec: SandboxSpec) -> Result<Self, Refusal> {
        prove_words(&spec)?;
        let image = agent.images.hold(&spec.image).ok_or_else(|| {
            let name = &spec.image;
            Refusal::missing(format!(
                "There is no image {name:?}; put one by PUT /images/{{name}}."
            ))
        })?;
        if spec.vsock && !image.image().vsock {
            return Err(Refusal::bad(format!(
                "vsock: the image {:?} has none; build one that has.",
                spec.image
            )));
        }
        prove_name(agent, spec.name.as_deref())?;
        prove_room(agent, image.image().memory_mib)?;
        let id = free_id(agent)?;
        let has_vsock = image.image().vsock;
        let sandbox = Sandbox {
            name: spec.name.clone(),
            image: spec.image.clone(),
            digest: image.image().digest.clone(),
            state: SandboxState::Starting,
            pid: None,
            warm: false,
            memory_mib: image.image().memory_mib,
            api_socket: Some(agent.folders.vm_socket(&id)),
            vsock_socket: has_vsock.then(|| agent.folders.vm_vsock(&id)),
            labels: spec.labels.clone(),
            created_unix_ms: unix_ms(),
            start_us: None,
            ended_unix_ms: None,
            exit_code: None,
            end_reason: None,
            id,
        };
        Ok(Self {
            sandbox,
            image,
            spec,
        })
    }

    /// Whether it can be one that is the same for all until it is given arguments and environment.
    #[must_use]
    pub fn can_be_warm(&self) -> bool {
        self.spec.net.is_empty() && self.spec.warm != WarmUse::Never
    }

    /// Whether it must come from a pool.
    #[must_use]
    pub fn must_be_warm(&self) -> bool {
        self.spec.warm == WarmUse::Require
    }

    /// Arguments of its guest.
    #[must_use]
    pub fn args(&self) -> Option<Vec<String>> {
        self.spec.args.clone()
    }

    /// Environment of its guest.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let env = self.spec.env.iter();
        env.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// What its monitor is called with, beside its name and socket.
    #[must_use]
    pub fn monitor_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--restore".into(), self.image.path().into()];
        let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
        for net in &self.spec.net {
            option("--net", net.into());
        }
        if let Some(vsock) = &self.sandbox.vsock_socket {
            option("--vsock", vsock.into());
        }
        for (name, value) in &self.spec.env {
            option("--env", format!("{name}={value}").into());
        }
        if let Some(words) = &self.spec.args {
            args.push("--".into());
            args.extend(words.iter().map(OsString::from));
        }
        args
    }
}

/// A sandbox that begins where `source` is now, if there is room for it.
///
/// # Errors
/// 400, 409, 429 or 507: what is wrong, and what is allowed.
pub fn prove_fork(
    agent: &Agent,
    source: &Sandbox,
    spec: ForkSandboxSpec,
) -> Result<Sandbox, Refusal> {
    prove_labels(&spec.labels)?;
    prove_name(agent, spec.name.as_deref())?;
    prove_room(agent, source.memory_mib)?;
    let id = free_id(agent)?;
    let has_vsock = source.vsock_socket.is_some();
    Ok(Sandbox {
        name: spec.name,
        state: SandboxState::Starting,
        pid: None,
        warm: false,
        api_socket: Some(agent.folders.vm_socket(&id)),
        vsock_socket: has_vsock.then(|| agent.folders.vm_vsock(&id)),
        labels: spec.labels,
        created_unix_ms: unix_ms(),
        start_us: None,
        ended_unix_ms: None,
        exit_code: None,
        end_reason: None,
        id,
        ..source.clone()
    })
}

/// A name that is one, and nobody else's.
fn prove_name(agent: &Agent, name: Option<&str>) -> Result<(), Refusal> {
    let Some(name) = name else {
        return Ok(());
    };
    if !is_name(name) {
        return Err(Refusal::bad(format!(
            "name: {name:?} is not allowed: 1–64 letters, digits and `-`."
        )));
    }
    if agent.sandboxes.is_taken(name) || agent.sandboxes.has(name) {
        return Err(Refusal::conflict(format!(
            "name: there is a sandbox {name} already; stop it, or choose another name."
        )));
    }
    Ok(())
}

/// What needs no look at anything else.
fn prove_words(spec: &SandboxSpec) -> Result<(), Refusal> {
    let count = |field: &str, count: usize, max: usize| {
        if count > max {
            let text = format!("{field}: there are {count}; allowed: {max}.");
            return Err(Refusal::bad(text));
        }
        Ok(())
    };
    let args = spec.args.as_deref().unwrap_or_default();
    count("args", args.len(), limits::WORDS_MAX)?;
    count("env", spec.env.len(), limits::WORDS_MAX)?;
    count("net", spec.net.len(), limits::NETS_MAX)?;
    let env = spec.env.iter().flat_map(|(name, value)| [name, value]);
    let bytes: usize = args
        .iter()
        .chain(env)
        .chain(&spec.net)
        .map(String::len)
        .sum();
    count("args, env and net: bytes", bytes, limits::WORD_BYTES_MAX)?;
    for name in spec.env.keys() {
        if name.is_empty() || name.contains('=') {
            return Err(Refusal::bad(format!(
                "env: {name:?} is no variable's name."
            )));
        }
    }
    let env = spec.env.iter().flat_map(|(name, value)| [name, value]);
    if args
        .iter()
        .chain(env)
        .chain(&spec.net)
        .any(|word| word.contains('\0'))
    {
        return Err(Refusal::bad(
            "args, env and net must not hold NUL characters.",
        ));
    }
    prove_labels(&spec.labels)
}

fn prove_labels(labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if labels.len() > limits::LABELS_MAX {
        return Err(Refusal::bad(format!(
            "labels: there are {}; allowed: {}.",
            labels.len(),
            limits::LABELS_MAX
        )));
    }
    for (name, value) in labels {
        let lengths = [name.len(), value.len()];
        if name.is_empty()
            || lengths
                .iter()
                .any(|length| *length > limits::LABEL_BYTES_MAX)
        {
            return Err(Refusal::bad(format!(
                "labels: {name:?}: a name has 1–{max} bytes, a value 0–{max}.",
                max = limits::LABEL_BYTES_MAX
            )));
        }
    }
    Ok(())
}

/// Whether the host's limits have room for one more, of `memory_mib`.
fn prove_room(agent: &Agent, memory_mib: u64) -> Result<(), Refusal> {
    let counts = agent.sandboxes.counts();
    let settings = &agent.settings;
    let live = counts.starting + counts.running + counts.paused;
    if live >= settings.sandboxes_max {
        return Err(Refusal::too_many(format!(
            "{live} sandboxes run; allowed: {} (--max-sandboxes, and descriptors of the agent). Stop one.",
            settings.sandboxes_max
        )));
    }
    if let Some(max) = settings.memory_mib_max
        && counts.memory_mib + memory_mib > max
    {
        return Err(Refusal::no_room(format!(
            "The sandboxes have {} MiB of memory and this one wants {memory_mib}; allowed: {max} (--max-memory). Stop one.",
            counts.memory_mib
        )));
    }
    let kept = settings.kept_memory_mib;
    match host::available_mib() {
        Some(available) if available < kept => Err(Refusal::no_room(format!(
            "The host has {available} MiB of memory left; {kept} are kept free (--keep-memory). Stop a sandbox."
        ))),
        _ => Ok(()),
    }
}

/// An id that no sandbox has, and that nobody guesses.
fn free_id(agent: &Agent) -> Result<String, Refusal> {
    loop {
        let mut number = [0_u8; 8];
        getrandom(&mut number, GetRandomFlags::empty()).map_err(|cause| {
            Refusal::unavailable(format!("Cannot get random bytes for an id: {cause}"))
        })?;
        let id = format!("{:016x}", u64::from_le_bytes(number));
        if !agent.sandboxes.has(&id) {
            return Ok(id);
        }
    }
}
