//! From a request to what can be started: everything is proved before anything is done.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use lightv_api::agent::sandbox::{ForkSandboxSpec, Sandbox, SandboxSpec, SandboxState, WarmUse};
use lightv_api::contract::net::{NetHost, NetworkOverride};
use lightv_launch::monitor::is_name;
use lightv_vmm::net_override::NetOverride;
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
            jailed: agent.settings.jails.is_some(),
            memory_mib: image.image().memory_mib,
            api_socket: Some(agent.folders.vm_socket(&id)),
            vsock_socket: has_vsock.then(|| vsock_of(agent, &id)),
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
        self.spec.net.is_empty() && self.spec.warm != WarmUse::Never && !self.sandbox.jailed
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
    if source.jailed && agent.settings.jails.is_none() {
        return Err(Refusal::conflict(format!(
            "Sandbox {} is in a jail, and its fork would not be in one: start the agent with --jail.",
            source.id
        )));
    }
    let id = free_id(agent)?;
    let has_vsock = source.vsock_socket.is_some();
    Ok(Sandbox {
        name: spec.name,
        state: SandboxState::Starting,
        pid: None,
        warm: false,
        jailed: agent.settings.jails.is_some(),
        api_socket: Some(agent.folders.vm_socket(&id)),
        vsock_socket: has_vsock.then(|| vsock_of(agent, &id)),
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

/// Where the vsock of sandbox `id` will be.
fn vsock_of(agent: &Agent, id: &str) -> PathBuf {
    match agent.settings.jails {
        Some(_) => agent.folders.jailed_vsock(id),
        None => agent.folders.vm_vsock(id),
    }
}

/// What the interfaces of a fork are connected to, as far as `nets` say it.
///
/// # Errors
/// 400: what is wrong, and what is allowed.
pub fn prove_overrides(nets: &[String]) -> Result<Vec<NetworkOverride>, Refusal> {
    prove_count("net", nets.len(), limits::NETS_MAX)?;
    let prove = |text: &String| {
        let net: NetOverride = text
            .parse()
            .map_err(|cause| Refusal::bad(format!("net: {text:?}: {cause}.")))?;
        let allowed = "[ID=]TAP, or [ID=]user with its options";
        let refuse = |why| Refusal::bad(format!("net: {text:?}: {why}; allowed: {allowed}."));
        if matches!(net.host, NetHost::Fd(_)) {
            return Err(refuse("a fork inherits no descriptor"));
        }
        net.of_load()
            .ok_or_else(|| refuse("a fork takes no address and no number of queues"))
    };
    nets.iter().map(prove).collect()
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
    let args = spec.args.as_deref().unwrap_or_default();
    prove_count("args", args.len(), limits::WORDS_MAX)?;
    prove_count("net", spec.net.len(), limits::NETS_MAX)?;
    let env = spec.env.iter().flat_map(|(name, value)| [name, value]);
    let bytes: usize = args
        .iter()
        .chain(env)
        .chain(&spec.net)
        .map(String::len)
        .sum();
    prove_count("args, env and net: bytes", bytes, limits::WORD_BYTES_MAX)?;
    prove_env(&spec.env)?;
    prove_no_nul("args and net", args.iter().chain(&spec.net))?;
    prove_labels(&spec.labels)
}

/// A count that is not more than `max`.
///
/// # Errors
/// 400.
pub fn prove_count(field: &str, count: usize, max: usize) -> Result<(), Refusal> {
    if count > max {
        let text = format!("{field}: there are {count}; allowed: {max}.");
        return Err(Refusal::bad(text));
    }
    Ok(())
}

/// Variables of an environment.
///
/// # Errors
/// 400: too many, a name that is none, or a NUL character.
pub fn prove_env(env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    prove_count("env", env.len(), limits::WORDS_MAX)?;
    let is_bad = |name: &&String| name.is_empty() || name.contains('=');
    if let Some(name) = env.keys().find(is_bad) {
        let text = format!("env: {name:?} is no variable's name.");
        return Err(Refusal::bad(text));
    }
    prove_no_nul("env", env.iter().flat_map(|(name, value)| [name, value]))
}

/// Words that a system call takes.
///
/// # Errors
/// 400: one has a NUL character in it.
pub fn prove_no_nul<'a>(
    what: &str,
    mut words: impl Iterator<Item = &'a String>,
) -> Result<(), Refusal> {
    if words.any(|word| word.contains('\0')) {
        let text = format!("{what} must not hold NUL characters.");
        return Err(Refusal::bad(text));
    }
    Ok(())
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
