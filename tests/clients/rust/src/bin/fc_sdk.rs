//! `fc_sdk FIRECRACKER KERNEL`: fc-sdk 0.2, whose types come from Firecracker's own OpenAPI file. In the working directory.

use fc_sdk::types::{BootSource, Drive, MachineConfiguration, SnapshotLoadParams};
use fc_sdk::{FirecrackerProcessBuilder, restore};

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (firecracker, kernel) = (
        args.next().ok_or("no program")?,
        args.next().ok_or("no kernel")?,
    );
    std::fs::write("disk", vec![0; 1 << 20])?;
    let mut first = FirecrackerProcessBuilder::new(&firecracker, "first.sock")
        .id("first")
        .spawn()
        .await?;
    let machine: MachineConfiguration =
        serde_json::from_str(r#"{"vcpu_count": 1, "mem_size_mib": 64}"#)?;
    let boot: BootSource = serde_json::from_value(
        serde_json::json!({"kernel_image_path": kernel, "boot_args": "app=tick -- 0 20"}),
    )?;
    let drive: Drive = serde_json::from_str(
        r#"{"drive_id": "d", "path_on_host": "disk", "is_root_device": false}"#,
    )?;
    let vm = first
        .vm_builder()
        .machine_config(machine)
        .boot_source(boot)
        .drive(drive)
        .start()
        .await?;
    println!("state {:?}", vm.describe().await?.state);
    println!("version {}", vm.version().await?.firecracker_version);
    let config = vm.config().await?;
    println!("drives {}", config.drives.len());
    // What the SDK does not wrap, by the client that is generated from the file.
    let client = first.client();
    let machine = client
        .get_machine_configuration()
        .send()
        .await?
        .into_inner();
    println!("memory {}", machine.mem_size_mib);
    println!("mmds {:?}", client.get_mmds().send().await.is_ok());
    vm.pause().await?;
    vm.create_snapshot("fc.state", "fc.mem").await?;
    vm.resume().await?;
    vm.flush_metrics().await?;
    println!("refused {}", vm.balloon_config().await.is_err());
    first.kill().await?;

    let mut second = FirecrackerProcessBuilder::new(&firecracker, "second.sock")
        .id("second")
        .spawn()
        .await?;
    let load: SnapshotLoadParams = serde_json::from_str(
        r#"{"snapshot_path": "fc.state", "mem_backend": {"backend_type": "File", "backend_path": "fc.mem"}, "resume_vm": true}"#,
    )?;
    let vm = restore("second.sock", load).await?;
    println!("restored {:?}", vm.describe().await?.state);
    second.kill().await?;
    println!("done");
    Ok(())
}
