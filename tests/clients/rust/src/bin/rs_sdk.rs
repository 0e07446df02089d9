//! `rs_sdk FIRECRACKER KERNEL`: firecracker-rs-sdk 0.1, which speaks HTTP/1.0 without a Host. In the working directory.

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::models::{
    BootSource, MachineConfiguration, SnapshotCreateParams, SnapshotLoadParams, SnapshotType,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (firecracker, kernel) = (
        args.next().ok_or("no program")?,
        args.next().ok_or("no kernel")?,
    );
    let mut first = FirecrackerOption::new(&firecracker)
        .api_sock("first.sock")
        .id("first")
        .build()?;
    first.start_vmm()?;
    println!(
        "version {}",
        first.get_firecracker_version()?.firecracker_version
    );
    let machine: MachineConfiguration =
        serde_json::from_str(r#"{"vcpu_count": 1, "mem_size_mib": 64}"#)?;
    first.put_machine_configuration(&machine)?;
    let boot: BootSource = serde_json::from_value(
        serde_json::json!({"kernel_image_path": kernel, "boot_args": "app=tick -- 0 20"}),
    )?;
    first.put_guest_boot_source(&boot)?;
    println!("memory {}", first.get_machine_configuration()?.mem_size_mib);
    first.start()?;
    println!("state {:?}", first.describe_instance()?.state);
    first.get_export_vm_config()?;
    println!("refused {}", first.describe_balloon_config().is_err());
    first.pause()?;
    first.create_snapshot(&SnapshotCreateParams {
        mem_file_path: "rs.mem".into(),
        snapshot_path: "rs.state".into(),
        snapshot_type: Some(SnapshotType::Full),
        version: None,
    })?;
    first.resume()?;
    // Ctrl-Alt-Del: this guest has no keyboard driver, and LightV says so where Firecracker says nothing.
    println!("stop is told {}", first.stop().is_err());
    end(first.firecracker_pid())?;

    let mut second = FirecrackerOption::new(&firecracker)
        .api_sock("second.sock")
        .id("second")
        .build()?;
    second.start_vmm()?;
    second.load_snapshot(&SnapshotLoadParams {
        enable_diff_snapshots: None,
        mem_file_path: Some("rs.mem".into()),
        mem_backend: None,
        resume_vm: Some(true),
        snapshot_path: "rs.state".into(),
    })?;
    println!("restored {:?}", second.describe_instance()?.state);
    end(second.firecracker_pid())?;
    println!("done");
    Ok(())
}

fn end(pid: Option<u32>) -> Result<(), Failure> {
    let pid = pid.ok_or("no process")?.to_string();
    std::process::Command::new("kill").arg(pid).status()?;
    Ok(())
}
