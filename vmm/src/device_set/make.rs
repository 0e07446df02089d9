//! The devices that a configuration names, not connected yet: new, or as they were saved.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use lightv_api::contract::balloon::BalloonSpec;
use lightv_devices::limits::DISK_LOCK_PATIENCE;
use lightv_devices::state::{ConsoleStateV1, DeviceState};
use lightv_devices::virtio::balloon::{Balloon, BalloonOptions, PAGES_PER_MIB};
use lightv_devices::virtio::block::{Block, Delta, DeltaAccess, Disk, Overlay, OverlayOptions};
use lightv_devices::virtio::console::{Console, Input, OnLost, Output, Streams, TerminalSize};
use lightv_devices::virtio::entropy::{Entropy, EntropyStateV1};
use lightv_devices::virtio::net::{Backend, Net, NetOptions, Tap};
use lightv_devices::virtio::vsock::Vsock;

use super::error::DeviceSetError;
use super::held::Held;
use super::{Around, HeldBackends};
use crate::config::{DriveConfig, MachineConfig, NetConfig, NetHost, OverlayConfig, VsockConfig};
use crate::image::disk::{ImageOverlay, StoredDisk};
use crate::limits;
use crate::listen::{ListenError, SocketFile};
use crate::output::GuestOutput;
use crate::reclaim::Reclaimer;
use crate::report;
use crate::runtime_dir;
use crate::sys::process;
use crate::terminal;
use crate::user_net;
use crate::vsock_socket;

/// Id of the entropy source.
const ENTROPY_ID: &str = "entropy";
/// Id of the balloon.
const BALLOON_ID: &str = "balloon";
/// Id of the console.
const CONSOLE_ID: &str = "console";
/// Id of the socket device.
const VSOCK_ID: &str = "vsock";

/// What of this process the machine is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostSide {
    /// The run has a terminal: standard input and output are it, and go to the guest's terminal.
    pub is_tty: bool,
    /// Standard input is not read: it is for machines that are restored from this one.
    pub is_input_held: bool,
}

/// A device that is not connected yet.
pub(super) struct Unconnected {
    pub(super) id: String,
    pub(super) device: Held,
}

impl Unconnected {
    fn new(id: &str, device: Held) -> Self {
        let id = id.to_owned();
        Self { id, device }
    }
}

/// Number of devices of a configuration.
pub(super) fn count(config: &MachineConfig) -> usize {
    config.drives().len() + config.nets().len() + singles(config).count()
}

/// A device of which there is one at most.
#[derive(Debug, Clone, Copy)]
enum Single<'a> {
    Entropy,
    Console,
    Balloon(&'a BalloonSpec),
    Vsock(&'a VsockConfig),
}

/// Those of `config`, in the order of their places.
fn singles(config: &MachineConfig) -> impl Iterator<Item = Single<'_>> {
    let all = [
        config.entropy().then_some(Single::Entropy),
        config.console().then_some(Single::Console),
        config.balloon().map(Single::Balloon),
        config.vsock().map(Single::Vsock),
    ];
    all.into_iter().flatten()
}

/// The disks of `config`, in order: those in the image, else the files that they name.
pub(super) fn open_disks(
    config: &MachineConfig,
    around: &Around<'_>,
) -> Result<Vec<Disk>, DeviceSetError> {
    let open = |drive| open_disk(drive, around);
    config.drives().iter().map(open).collect()
}

/// Those of `disks` that a save puts into the image.
pub(super) fn stored_disks(config: &MachineConfig, disks: &[Disk]) -> Vec<StoredDisk> {
    let drives = config.drives().iter().zip(disks);
    let stored = drives.filter_map(|(drive, disk)| {
        Some(StoredDisk {
            index: drive.in_image?,
            file: Arc::clone(disk.file()),
            base: disk.base(),
            len_bytes: disk.len_bytes(),
        })
    });
    stored.collect()
}

/// The devices of `config`, in the order of their places; `disks` are open.
pub(super) fn create(
    config: &MachineConfig,
    disks: Vec<Disk>,
    around: &Around<'_>,
) -> Result<Vec<Unconnected>, DeviceSetError> {
    let mut devices = Vec::with_capacity(count(config));
    for (drive, disk) in config.drives().iter().zip(disks) {
        let mut block = Block::new(drive.id.clone(), drive.cache, disk).with_queues(drive.queues);
        settle_drive(&mut block, drive)?;
        devices.push(Unconnected::new(&drive.id, Held::block(block)));
    }
    for net in config.nets() {
        let card = Net::new(NetOptions {
            id: net.id.clone(),
            backend: open_network(net, around.held)?,
            mac: net.mac,
            mtu: net.mtu,
        });
        devices.push(set_up_card(config, net, card, around));
    }
    for single in singles(config) {
        devices.push(match single {
            Single::Entropy => {
                let mut entropy = Entropy::new(ENTROPY_ID.to_owned());
                entropy.change_limits(config.entropy_limits());
                Unconnected::new(ENTROPY_ID, Held::other(entropy))
            }
            Single::Console => {
                let console = open_console(around.host, around.output)?;
                Unconnected::new(CONSOLE_ID, Held::console(console))
            }
            Single::Balloon(spec) => {
                let balloon = make_balloon(config, spec, around)?;
                Unconnected::new(BALLOON_ID, Held::balloon(balloon))
            }
            Single::Vsock(vsock) => {
                let (device, file) = open_vsock(vsock, around.held, DeviceSetError::Vsock)?;
                Unconnected::new(VSOCK_ID, Held::vsock(device, file))
            }
        });
    }
    Ok(devices)
}

/// What is not the guest's to know.
fn settle_drive(block: &mut Block, drive: &DriveConfig) -> Result<(), DeviceSetError> {
    block.change_limits(drive.limits);
    let set = block.set_engine(drive.engine);
    set.map_err(|cause| DeviceSetError::Engine {
        id: drive.id.clone(),
        cause,
    })
}

fn make_balloon(
    config: &MachineConfig,
    spec: &BalloonSpec,
    around: &Around<'_>,
) -> Result<Balloon, DeviceSetError> {
    let ram_pages = config.ram_bytes() / lightv_devices::virtio::balloon::PAGE_BYTES;
    let options = BalloonOptions {
        id: BALLOON_ID.to_owned(),
        target_pages: spec.amount_mib.saturating_mul(PAGES_PER_MIB),
        ram_pages: u32::try_from(ram_pages).unwrap_or(u32::MAX),
        deflate_on_oom: spec.deflate_on_oom,
        polling_interval_s: spec.stats_polling_interval_s,
        has_hinting: spec.free_page_hinting,
        has_reporting: spec.free_page_reporting,
        reclaim: Arc::new(Reclaimer::new(around.ram)),
    };
    Balloon::new(options).map_err(DeviceSetError::BalloonTimer)
}

fn open_disk(drive: &DriveConfig, around: &Around<'_>) -> Result<Disk, DeviceSetError> {
    let found = around
        .disks
        .iter()
        .find(|disk| Some(disk.index) == drive.in_image);
    let disk = match found {
        Some(found) => {
            let disk = Disk::in_image(found.part.clone());
            disk.ok_or_else(|| DeviceSetError::DiskInImage {
                id: drive.id.clone(),
                bytes: found.part.len_bytes,
            })?
        }
        None => open_file(drive)?,
    };
    let disk = match &drive.overlay {
        Some(overlay) => lay_over(drive, overlay, disk, around.overlays)?,
        None => disk,
    };
    let disk = if drive.discard {
        disk.with_discard()
    } else {
        disk
    };
    if !drive.direct {
        return Ok(disk);
    }
    disk.into_direct().map_err(|cause| DeviceSetError::Direct {
        id: drive.id.clone(),
        path: drive.path.clone(),
        cause,
    })
}

/// The file or block device of `drive`, locked. What is under an overlay is only read.
fn open_file(drive: &DriveConfig) -> Result<Disk, DeviceSetError> {
    let disk = Disk::open(&drive.path, drive.read_only || drive.overlay.is_some());
    let disk = disk.map_err(|cause| DeviceSetError::Disk {
        id: drive.id.clone(),
        cause,
    })?;
    if disk.has_partial_sector() {
        let (path, bytes) = (drive.path.display(), disk.len_bytes());
        report::say(&format!(
            "drive {}: disk {path} has {bytes} bytes; the guest does not see the last part of a sector of 512",
            drive.id
        ));
    }
    let locked = disk.locked(&drive.path, None, DISK_LOCK_PATIENCE);
    locked.map_err(|cause| DeviceSetError::Lock {
        id: drive.id.clone(),
        cause,
    })
}

fn lay_over(
    drive: &DriveConfig,
    config: &OverlayConfig,
    disk: Disk,
    saved: Option<&[ImageOverlay]>,
) -> Result<Disk, DeviceSetError> {
    let delta = match &config.path {
        Some(path) => Delta::File {
            path,
            // A machine that goes on needs what it has written.
            access: match saved {
                Some(_) => DeltaAccess::Continue,
                None => DeltaAccess::Create,
            },
            patience: DISK_LOCK_PATIENCE,
        },
        None => {
            let saved = saved.unwrap_or_default().iter();
            let mut saved = saved.filter(|overlay| overlay.index == config.index);
            Delta::Memory(saved.next().map(|overlay| overlay.saved.clone()))
        }
    };
    let bytes_max = config.bytes_max;
    let disk = disk.with_overlay(OverlayOptions { delta, bytes_max });
    let disk = disk.map_err(|cause| DeviceSetError::Overlay {
        id: drive.id.clone(),
        cause,
    })?;
    let lost_blocks = disk.overlay().map_or(0, Overlay::lost_blocks);
    if let (Some(path), 1..) = (&config.path, lost_blocks) {
        report::say(&format!(
            "drive {}: the host went down while delta {} was in use: {} KiB that were written after the last flush are lost",
            drive.id,
            path.display(),
            lost_blocks.saturating_mul(4)
        ));
    }
    Ok(disk)
}

/// The host's end of an interface: a tap that is held, one that is opened, or a new network in user space.
fn open_network(net: &NetConfig, held: Option<&HeldBackends>) -> Result<Backend, DeviceSetError> {
    if let Some(tap) = held.and_then(|held| held.taps.take(net)) {
        return Ok(tap.into());
    }
    let id = net.id.clone();
    match &net.host {
        NetHost::Tap(name) => Tap::open(name, net.pairs)
            .map(Backend::from)
            .map_err(|cause| DeviceSetError::Tap { id, cause }),
        NetHost::Fd(number) => Tap::inherit(*number)
            .map(Backend::from)
            .map_err(|cause| DeviceSetError::Tap { id, cause }),
        NetHost::User(user) => user_net::start(user, net.mtu)
            .map(Backend::from)
            .map_err(|cause| DeviceSetError::UserNet { id, cause }),
    }
}

/// The standard streams as the console's. Of a run with a terminal they are the terminal's; else there is no terminal, and
/// what a guest's kernel prints to it goes where the serial port's text goes.
fn open_console(host: HostSide, output: &GuestOutput) -> Result<Console, DeviceSetError> {
    let console = Console::new(CONSOLE_ID.to_owned(), open_streams(host, output)?);
    let mut console = console.map_err(DeviceSetError::Streams)?;
    console.hold_input(host.is_input_held);
    Ok(console)
}

/// The standard streams as they are now.
pub(super) fn open_streams(
    host: HostSide,
    output: &GuestOutput,
) -> Result<Streams, DeviceSetError> {
    let losses = output.clone();
    let on_lost: OnLost = Arc::new(move |cause| losses.note(cause));
    let open = |fd: &dyn AsFd| Output::open(fd.as_fd(), Arc::clone(&on_lost));
    let make = || {
        let input = Some(Input::open(io::stdin().as_fd())?);
        let (terminal, stdin, terminal_output, size) = if host.is_tty {
            (input, None, open(&io::stdout())?, terminal::size())
        } else {
            (None, input, open(&io::stderr())?, TerminalSize::default())
        };
        Ok(Streams {
            terminal,
            terminal_output,
            stdin,
            stdout: open(&io::stdout())?,
            stderr: open(&io::stderr())?,
            size,
        })
    };
    make().map_err(DeviceSetError::Streams)
}

/// The socket device, on the socket that is held or on one that is made; `refused` is why there is none.
fn open_vsock(
    config: &VsockConfig,
    held: Option<&HeldBackends>,
    refused: fn(ListenError) -> DeviceSetError,
) -> Result<(Vsock, Arc<SocketFile>), DeviceSetError> {
    let socket = match held.and_then(|held| held.vsock.take(&config.path)) {
        Some(socket) => socket,
        None => {
            if config.is_in_runtime_dir {
                runtime_dir::ensure_folder().map_err(DeviceSetError::RuntimeDir)?;
            }
            vsock_socket::open(&config.path).map_err(refused)?
        }
    };
    runtime_dir::announce_vsock(&config.path);
    process::allow_files(limits::FILES_WITH_VSOCK);
    let (id, cid) = (VSOCK_ID.to_owned(), config.guest_cid);
    let device = Vsock::new(id, cid, &config.path, socket.listener);
    let device = device.map_err(DeviceSetError::WatchVsock)?;
    Ok((device, socket.file))
}

/// The device at `place` of the configuration, in the state `state`; `disk` is its disk, if it is one.
pub(super) fn restore(
    config: &MachineConfig,
    place: usize,
    state: &DeviceState,
    disk: Option<Disk>,
    around: &Around<'_>,
) -> Result<Unconnected, DeviceSetError> {
    let (drives, nets) = (config.drives(), config.nets());
    let single = place.checked_sub(drives.len() + nets.len());
    let net = place.checked_sub(drives.len());
    if let (Some(drive), Some(disk)) = (drives.get(place), disk) {
        restore_drive(place, drive, disk, state)
    } else if let Some(net) = net.and_then(|place| nets.get(place)) {
        let card = restore_net(place, net, state, around.held)?;
        Ok(set_up_card(config, net, card, around))
    } else {
        let single = single.and_then(|number| singles(config).nth(number));
        restore_single(config, (place, single), state, around)
    }
}

fn restore_single(
    config: &MachineConfig,
    (place, single): (usize, Option<Single<'_>>),
    state: &DeviceState,
    around: &Around<'_>,
) -> Result<Unconnected, DeviceSetError> {
    match (single, state) {
        (Some(Single::Entropy), DeviceState::Entropy(EntropyStateV1 {})) => {
            let mut entropy = Entropy::from_state(ENTROPY_ID.to_owned(), EntropyStateV1 {});
            entropy.change_limits(config.entropy_limits());
            Ok(Unconnected::new(ENTROPY_ID, Held::other(entropy)))
        }
        (Some(Single::Console), DeviceState::Console(state)) => {
            restore_console(open_console(around.host, around.output)?, state)
        }
        (Some(Single::Balloon(spec)), DeviceState::Balloon(state)) => {
            let balloon = make_balloon(config, spec, around)?.with_state(state);
            let balloon = balloon.map_err(|cause| DeviceSetError::Restore {
                id: BALLOON_ID.to_owned(),
                cause,
            })?;
            Ok(Unconnected::new(BALLOON_ID, Held::balloon(balloon)))
        }
        (Some(Single::Vsock(vsock)), state) => restore_vsock(place, vsock, state, around.held),
        (Some(Single::Entropy), _) => Err(wrong_kind(place, ENTROPY_ID)),
        (Some(Single::Balloon(_)), _) => Err(wrong_kind(place, BALLOON_ID)),
        (Some(Single::Console) | None, _) => Err(wrong_kind(place, CONSOLE_ID)),
    }
}

fn restore_drive(
    place: usize,
    drive: &DriveConfig,
    disk: Disk,
    state: &DeviceState,
) -> Result<Unconnected, DeviceSetError> {
    let DeviceState::Block(state) = state else {
        return Err(wrong_kind(place, &drive.id));
    };
    let block = Block::from_state(drive.id.clone(), state, disk);
    let mut block = block.map_err(|cause| DeviceSetError::RestoreDisk {
        id: drive.id.clone(),
        path: drive.path.clone(),
        cause,
    })?;
    block = block.with_queues(drive.queues);
    settle_drive(&mut block, drive)?;
    Ok(Unconnected::new(&drive.id, Held::block(block)))
}

fn restore_net(
    place: usize,
    net: &NetConfig,
    state: &DeviceState,
    held: Option<&HeldBackends>,
) -> Result<Net, DeviceSetError> {
    let DeviceState::Net(state) = state else {
        return Err(wrong_kind(place, &net.id));
    };
    let card = Net::from_state(net.id.clone(), state, open_network(net, held)?);
    card.map_err(|cause| DeviceSetError::Restore {
        id: net.id.clone(),
        cause,
    })
}

/// A network card with its limits, and with the way to the metadata service if `config` says so.
fn set_up_card(
    config: &MachineConfig,
    net: &NetConfig,
    mut card: Net,
    around: &Around<'_>,
) -> Unconnected {
    card.change_limits(net.receive_limits, net.transmit_limits);
    if let Some(options) = config.mmds().and_then(|mmds| mmds.options_of(&net.id)) {
        card.reach_metadata(around.mmds.clone(), options);
    }
    Unconnected::new(&net.id, Held::net(card))
}

fn restore_console(
    console: Console,
    state: &ConsoleStateV1,
) -> Result<Unconnected, DeviceSetError> {
    let console = console.with_state(state);
    let console = console.map_err(|cause| DeviceSetError::Restore {
        id: CONSOLE_ID.to_owned(),
        cause,
    })?;
    Ok(Unconnected::new(CONSOLE_ID, Held::console(console)))
}

fn restore_vsock(
    place: usize,
    vsock: &VsockConfig,
    state: &DeviceState,
    held: Option<&HeldBackends>,
) -> Result<Unconnected, DeviceSetError> {
    let DeviceState::Vsock(state) = state else {
        return Err(wrong_kind(place, VSOCK_ID));
    };
    let (device, file) = open_vsock(vsock, held, DeviceSetError::RestoreVsock)?;
    let device = device
        .with_state(state)
        .map_err(|cause| DeviceSetError::Restore {
            id: VSOCK_ID.to_owned(),
            cause,
        })?;
    Ok(Unconnected::new(VSOCK_ID, Held::vsock(device, file)))
}

fn wrong_kind(place: usize, id: &str) -> DeviceSetError {
    let id = id.to_owned();
    DeviceSetError::Kind { place, id }
}
