//! `fctools_vm FIRECRACKER KERNEL`: the life of a machine by fctools 0.6: booted by requests and by a file, paused, saved, restored,
//! ended.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::Vm;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{BootSource, CreateSnapshot, MachineConfiguration, SnapshotType};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::snapshot::PrepareVmFromSnapshotOptions;
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

const PATIENCE: Duration = Duration::from_secs(20);

fn here(name: &str) -> PathBuf {
    std::env::current_dir().expect("a folder").join(name)
}

fn executor(socket: &str) -> UnrestrictedVmmExecutor {
    UnrestrictedVmmExecutor::new(VmmArguments::new(VmmApiSocket::Enabled(here(socket))))
}

async fn boot(
    program: &Path,
    kernel: &Path,
    (socket, init_method): (&str, InitMethod),
) -> Result<Machine, Box<dyn Error>> {
    let mut resources = ResourceSystem::new(
        DirectProcessSpawner,
        TokioRuntime,
        VmmOwnershipModel::Shared,
    );
    let kernel = ResourceType::Moved(MovedResourceType::Copied).create(&mut resources, kernel)?;
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image: kernel,
            boot_args: Some("app=tick -- 0 20".to_owned()),
            initrd: None,
        },
        drives: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 64,
            smt: None,
            track_dirty_pages: Some(true),
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: Vec::new(),
        balloon_device: None,
        vsock_device: None,
        logger_system: None,
        metrics_system: None,
        mmds_configuration: None,
        entropy_device: None,
    };
    let installation = VmmInstallation::new(program, program, program);
    let configuration = VmConfiguration::New { init_method, data };
    let mut vm = Vm::prepare(executor(socket), resources, installation, configuration)
        .await
        .map_err(text)?;
    vm.start(PATIENCE).await.map_err(text)?;
    Ok(vm)
}

trait Create {
    fn create(
        self,
        resources: &mut ResourceSystem<DirectProcessSpawner, TokioRuntime>,
        path: &Path,
    ) -> Result<fctools::vmm::resource::Resource, Box<dyn Error>>;
}

impl Create for ResourceType {
    fn create(
        self,
        resources: &mut ResourceSystem<DirectProcessSpawner, TokioRuntime>,
        path: &Path,
    ) -> Result<fctools::vmm::resource::Resource, Box<dyn Error>> {
        resources.create_resource(path, self).map_err(text)
    }
}

fn text(error: impl std::fmt::Debug) -> Box<dyn Error> {
    format!("{error:?}").into()
}

async fn end(mut vm: Machine) -> Result<(), Box<dyn Error>> {
    let kill = VmShutdownAction {
        method: VmShutdownMethod::PauseThenKill,
        timeout: Some(PATIENCE),
        graceful: false,
    };
    vm.shutdown([kill]).await.map_err(text)?;
    vm.cleanup().await.map_err(text)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (program, kernel) = (
        args.next().ok_or("no program")?,
        args.next().ok_or("no kernel")?,
    );

    let mut vm = boot(&program, &kernel, ("a.sock", InitMethod::ViaApiCalls)).await?;
    let info = vm.get_info().await.map_err(text)?;
    println!("id {} booted {:?}", info.id, vm.get_state());
    println!(
        "version {}",
        vm.get_firecracker_version().await.map_err(text)?
    );
    let machine = vm.get_machine_configuration().await.map_err(text)?;
    println!("memory {}", machine.mem_size_mib);

    vm.pause().await.map_err(text)?;
    println!("paused {:?}", vm.get_state());
    let resources = vm.get_resource_system_mut();
    let save = CreateSnapshot {
        snapshot_type: Some(SnapshotType::Full),
        snapshot: ResourceType::Produced.create(resources, &here("state"))?,
        mem_file: ResourceType::Produced.create(resources, &here("memory"))?,
    };
    let snapshot = vm.create_snapshot(save).await.map_err(text)?;
    let options = PrepareVmFromSnapshotOptions {
        executor: executor("b.sock"),
        process_spawner: DirectProcessSpawner,
        runtime: TokioRuntime,
        moved_resource_type: MovedResourceType::Copied,
        ownership_model: VmmOwnershipModel::Shared,
        enable_diff_snapshots: Some(false),
        resume_vm: Some(true),
    };
    let mut clone = snapshot.prepare_vm(&mut vm, options).await.map_err(text)?;
    clone.start(PATIENCE).await.map_err(text)?;
    println!(
        "restored, stands still: {}",
        clone.get_info().await.map_err(text)?.is_paused
    );
    vm.resume().await.map_err(text)?;
    println!(
        "resumed, stands still: {}",
        vm.get_info().await.map_err(text)?.is_paused
    );
    end(clone).await?;
    end(vm).await?;

    let file = InitMethod::ViaJsonConfiguration(here("vm.json"));
    let mut vm = boot(&program, &kernel, ("c.sock", file)).await?;
    println!(
        "from a file, stands still: {}",
        vm.get_info().await.map_err(text)?.is_paused
    );
    end(vm).await?;
    println!("done");
    Ok(())
}
