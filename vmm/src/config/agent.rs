//! What `run.agent` may say. The agent itself reads it in the guest, where a mistake would be found too late.

use std::net::{IpAddr, Ipv4Addr};

use lightv_api::config::{AgentSpec, InterfaceSpec, Ready, Writable};

use super::Faults;
use crate::limits;

/// Proves `agent` for a machine with `nets` network interfaces.
pub(super) fn prove(agent: &AgentSpec, nets: usize, faults: &mut Faults) {
    if let Some(name) = &agent.hostname {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if name.is_empty() || name.len() > limits::HOSTNAME_BYTES_MAX || !name.bytes().all(is_name)
        {
            faults.add(
                "run.agent.hostname",
                format!("`{name}`"),
                format!(
                    "1–{} letters, digits, `-` and `.`",
                    limits::HOSTNAME_BYTES_MAX
                ),
            );
        }
    }
    let words = agent.entrypoint.iter().chain(&agent.workdir);
    if words.chain(&agent.user).any(|word| word.contains('\0')) {
        faults.add(
            "run.agent",
            "a text with a NUL byte",
            "texts without NUL bytes in entrypoint, workdir and user",
        );
    }
    for (index, interface) in agent.network.iter().enumerate() {
        prove_interface(index, interface, nets, faults);
    }
    if agent.ready == Ready::Listen(0) {
        faults.add("run.agent.ready.listen", 0, "1–65535");
    }
    match &agent.writable {
        Writable::MemoryMib(0) => faults.add("run.agent.writable.memorymib", 0, "1 or more"),
        Writable::Disk(path) if !path.starts_with("/dev/") => faults.add(
            "run.agent.writable.disk",
            format!("`{path}`"),
            "a block device of the guest, such as /dev/vdb",
        ),
        Writable::Memory | Writable::MemoryMib(_) | Writable::Disk(_) | Writable::Nowhere => {}
    }
}

fn prove_interface(index: usize, interface: &InterfaceSpec, nets: usize, faults: &mut Faults) {
    let field = |name: &str| format!("run.agent.network[{index}].{name}");
    let InterfaceSpec {
        interface: name,
        address,
        gateway,
        dns,
    } = interface;
    let number = name
        .strip_prefix("eth")
        .and_then(|number| number.parse::<usize>().ok());
    if number.is_none_or(|number| number >= nets) {
        let allowed = match nets {
            0 => "nothing: the machine has no network interface".to_owned(),
            1 => "eth0".to_owned(),
            _ => format!("eth0–eth{}", nets - 1),
        };
        faults.add(field("interface"), format!("`{name}`"), allowed);
    }
    if !is_network(address) {
        faults.add(
            field("address"),
            format!("`{address}`"),
            "an IPv4 address and a prefix length, such as 10.0.0.2/24",
        );
    }
    if let Some(gateway) = gateway
        && gateway.parse::<Ipv4Addr>().is_err()
    {
        faults.add(
            field("gateway"),
            format!("`{gateway}`"),
            "an IPv4 address, such as 10.0.0.1",
        );
    }
    for server in dns {
        if server.parse::<IpAddr>().is_err() {
            faults.add(field("dns"), format!("`{server}`"), "IP addresses");
        }
    }
}

fn is_network(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, prefix)| {
        address.parse::<Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|prefix| prefix <= 32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(agent: &AgentSpec, nets: usize) -> Vec<String> {
        let mut faults = Faults::default();
        prove(agent, nets, &mut faults);
        faults.0.into_iter().map(|fault| fault.field).collect()
    }

    fn interface(name: &str, address: &str) -> InterfaceSpec {
        InterfaceSpec {
            interface: name.into(),
            address: address.into(),
            gateway: None,
            dns: Vec::new(),
        }
    }

    #[test]
    fn good_orders_pass() {
        let agent = AgentSpec {
            entrypoint: vec!["/bin/sh".into()],
            hostname: Some("web-1.example".into()),
            network: vec![InterfaceSpec {
                gateway: Some("10.0.0.1".into()),
                dns: vec!["10.0.0.1".into(), "fd00::1".into()],
                ..interface("eth1", "10.0.0.2/24")
            }],
            ready: Ready::Listen(80),
            writable: Writable::Disk("/dev/vdb".into()),
            ..AgentSpec::default()
        };
        assert_eq!(fields(&agent, 2), [""; 0]);
        assert_eq!(fields(&AgentSpec::default(), 0), [""; 0]);
    }

    #[test]
    fn bad_orders_are_named() {
        let agent = AgentSpec {
            hostname: Some("a b".into()),
            workdir: Some("/\0".into()),
            network: vec![
                interface("eth1", "10.0.0.2/24"),
                interface("lan", "10.0.0.2"),
                interface("eth0", "10.0.0.2/33"),
            ],
            ready: Ready::Listen(0),
            writable: Writable::Disk("vdb".into()),
            ..AgentSpec::default()
        };
        let expected = [
            "run.agent.hostname",
            "run.agent",
            "run.agent.network[0].interface",
            "run.agent.network[1].interface",
            "run.agent.network[1].address",
            "run.agent.network[2].address",
            "run.agent.ready.listen",
            "run.agent.writable.disk",
        ];
        assert_eq!(fields(&agent, 1), expected);
    }
}
