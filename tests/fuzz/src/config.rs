//! The configuration file: JSON, and all that is proved of it before anything is opened.

use lightv_api::config::VmSpec;
use lightv_devices::control::{CONTROL_BYTES, ControlPage, RunData};
use lightv_vmm::cmdline;
use lightv_vmm::config::MachineConfig;
use vm_memory::VolatileSlice;

/// Memory of the host, as far as a configuration may use it.
const HOST_BYTES: u64 = 64 << 30;

/// The file's bytes.
pub fn run(input: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<VmSpec>(input) else {
        return;
    };
    let text = serde_json::to_vec(&spec).expect("what came of text becomes text");
    let again: VmSpec = serde_json::from_slice(&text).expect("we read what we write");
    assert_eq!(again, spec);
    match MachineConfig::prove(spec, HOST_BYTES) {
        Ok(config) => use_all(&config),
        Err(faults) => {
            assert!(!faults.0.is_empty() && !faults.to_string().is_empty());
        }
    }
}

/// What a start makes of a configuration without opening anything.
fn use_all(config: &MachineConfig) {
    assert!((1..=32).contains(&config.vcpus()));
    assert!(config.ram_bytes() <= HOST_BYTES);
    if let Some(boot) = config.boot() {
        let _ = cmdline::assemble(&boot.args, &["virtio_mmio.device=4K@0xc0010000:5".into()]);
    }
    let run = RunData {
        args: config.args().to_vec(),
        env: config.env(),
        agent: config.agent_json(),
        ..RunData::default()
    };
    let mut page = vec![0; CONTROL_BYTES];
    let _ = ControlPage::new(VolatileSlice::from(page.as_mut_slice())).publish(&run);
}
