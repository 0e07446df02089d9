//! A monitor that does all that it is asked, without a machine.

use std::path::PathBuf;
use std::sync::LazyLock;

use lightv_api::config::VmSpec;
use lightv_api::contract::mmds::MmdsData;
use lightv_api::contract::snapshot::{ForkSpec, LoadParams, SnapshotCreate};
use lightv_api::request::{Reply, Request};
use lightv_api_server::machine::{Change, DeviceCall, Machine, Output, Refusal};

use crate::file::InputFile;

/// A file that is there, and may be written.
static FILE: LazyLock<InputFile> = LazyLock::new(|| InputFile::new(&[0; 512]));

/// The monitor. Each seventh change is refused.
#[derive(Debug, Default)]
pub(crate) struct FakeMachine {
    changes: u32,
}

impl FakeMachine {
    fn change(&mut self) -> Result<(), Refusal> {
        self.changes = self.changes.wrapping_add(1);
        if self.changes.is_multiple_of(7) {
            return Err(Refusal::new("the host has none left"));
        }
        Ok(())
    }
}

impl Machine for FakeMachine {
    fn admit(&mut self, _: Change<'_>) -> Result<(), Refusal> {
        self.change()
    }

    fn set_output(&mut self, _: Output<'_>) -> Result<(), Refusal> {
        self.change()
    }

    fn start(&mut self, _: &VmSpec) -> Result<(), Refusal> {
        self.change()
    }

    fn load(&mut self, _: &LoadParams) -> Result<VmSpec, Refusal> {
        self.change()?;
        Ok(VmSpec::default())
    }

    fn pause(&mut self) -> Result<(), Refusal> {
        self.change()
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        self.change()
    }

    fn fork(&mut self, _: &ForkSpec) -> Result<(), Refusal> {
        Ok(())
    }

    fn save(&mut self, _: &SnapshotCreate) -> Result<(), Refusal> {
        self.change()
    }

    fn device(&mut self, _: DeviceCall<'_>) -> Result<Reply, Refusal> {
        self.change()?;
        Ok(Reply::Done)
    }

    fn send_ctrl_alt_del(&mut self) -> Result<(), Refusal> {
        self.change()
    }

    fn flush_metrics(&mut self) -> Result<(), Refusal> {
        self.change()
    }

    fn put_metadata(&mut self, _: &MmdsData) {}
}

/// The same request, but that it names no file of this host: the controller opens what it is told to.
pub(crate) fn without_files(mut request: Request) -> Request {
    let replace = |path: &mut PathBuf| *path = FILE.path();
    let replace_some = |path: &mut Option<PathBuf>| path.iter_mut().for_each(replace);
    match &mut request {
        Request::PutBootSource(boot) => {
            replace(&mut boot.kernel_image_path);
            replace_some(&mut boot.initrd_path);
        }
        Request::PutDrive(drive) => {
            replace(&mut drive.path_on_host);
            if let Some(overlay) = &mut drive.overlay {
                replace_some(&mut overlay.path);
            }
        }
        Request::PatchDrive(patch) => replace_some(&mut patch.path_on_host),
        Request::PutPmem(pmem) => replace(&mut pmem.path_on_host),
        _ => {}
    }
    request
}
