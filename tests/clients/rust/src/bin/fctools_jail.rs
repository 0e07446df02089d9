//! `fctools_jail FIRECRACKER JAILER KERNEL`: machines in jails by fctools 0.6, as root with another user for the monitor: attached,
//! saved and restored in another jail, in a process name space of its own, as a daemon.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
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
use fctools::vmm::arguments::jailer::JailerArguments;
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::jailed::{FlatVirtualPathResolver, JailedVmmExecutor};
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};

type Executor = JailedVmmExecutor<FlatVirtualPathResolver>;
type Machine = Vm<Executor, DirectProcessSpawner, TokioRuntime>;

const PATIENCE: Duration = Duration::from_secs(20);
const OWNER: VmmOwnershipModel = VmmOwnershipModel::Downgraded {
    uid: 1234,
    gid: 1234,
};

fn jails() -> PathBuf {
    std::env::current_dir().expect("a folder").join("jails")
}

fn jail(id: &str) -> Result<JailerArguments, Box<dyn Error>> {
    Ok(JailerArguments::new(VmmId::new(id).map_err(text)?).chroot_base_dir(jails()))
}

fn executor(jail: JailerArguments) -> Executor {
    let socket = VmmApiSocket::Enabled("/run/firecracker.socket".into());
    JailedVmmExecutor::new(VmmArguments::new(socket), jail, FlatVirtualPathResolver)
}

/// Whose the socket of machine `id` is: that of the process that has made it.
fn user_of(id: &str) -> Result<u32, Box<dyn Error>> {
    let socket = jails().join("firecracker").join(id);
    Ok(fs::metadata(socket.join("root/run/firecracker.socket"))?.uid())
}

async fn boot(
    installation: &VmmInstallation,
    kernel: &Path,
    jail: JailerArguments,
) -> Result<Machine, Box<dyn Error>> {
    let mut resources = ResourceSystem::new(DirectProcessSpawner, TokioRuntime, OWNER);
    let moved = ResourceType::Moved(MovedResourceType::Copied);
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image: resources.create_resource(kernel, moved).map_err(text)?,
            boot_args: Some("app=tick -- 0 20".to_owned()),
            initrd: None,
        },
        drives: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 64,
            smt: None,
            track_dirty_pages: None,
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
    let configuration = VmConfiguration::New {
        init_method: InitMethod::ViaApiCalls,
        data,
    };
    let prepared = Vm::prepare(
        executor(jail),
        resources,
        installation.clone(),
        configuration,
    );
    let mut vm = prepared.await.map_err(text)?;
    vm.start(PATIENCE).await.map_err(text)?;
    Ok(vm)
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
    let mut next = |what: &str| args.next().ok_or_else(|| format!("no {what}"));
    let (program, jailer) = (next("firecracker")?, next("jailer")?);
    let kernel = next("kernel")?;
    fs::create_dir(jails())?;
    let installation = VmmInstallation::new(&program, &jailer, &program);

    let mut vm = boot(&installation, &kernel, jail("attached")?).await?;
    println!(
        "attached: user {}, {:?}",
        user_of("attached")?,
        vm.get_state()
    );
    vm.pause().await.map_err(text)?;
    let resources = vm.get_resource_system_mut();
    let mut produced = |path: &str| {
        let made = resources.create_resource(path, ResourceType::Produced);
        made.map_err(text)
    };
    let save = CreateSnapshot {
        snapshot_type: Some(SnapshotType::Full),
        snapshot: produced("/state")?,
        mem_file: produced("/memory")?,
    };
    let snapshot = vm.create_snapshot(save).await.map_err(text)?;
    println!("saved");
    let apart = jail("restored")?.exec_in_new_pid_ns();
    let options = PrepareVmFromSnapshotOptions {
        executor: executor(apart),
        process_spawner: DirectProcessSpawner,
        runtime: TokioRuntime,
        moved_resource_type: MovedResourceType::Copied,
        ownership_model: OWNER,
        enable_diff_snapshots: Some(false),
        resume_vm: Some(true),
    };
    let mut clone = snapshot.prepare_vm(&mut vm, options).await.map_err(text)?;
    clone.start(PATIENCE).await.map_err(text)?;
    println!(
        "restored apart: user {}, stands still: {}",
        user_of("restored")?,
        clone.get_info().await.map_err(text)?.is_paused
    );
    end(clone).await?;
    vm.resume().await.map_err(text)?;
    end(vm).await?;

    let daemon = jail("daemon")?.daemonize().max_fd_limit(512);
    let mut vm = boot(&installation, &kernel, daemon).await?;
    println!("daemon: user {}, {:?}", user_of("daemon")?, vm.get_state());
    end(vm).await?;
    let left = fs::read_dir(jails().join("firecracker"))?.count();
    println!("jails left: {left}");
    println!("done");
    Ok(())
}
