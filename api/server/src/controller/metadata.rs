//! The metadata store.

use lightv_api::contract::mmds::{MmdsData, merge};
use lightv_api::fault::Area;
use lightv_api::request::Reply;

use super::Controller;
use crate::machine::Machine;
use crate::service::Answer;

pub(super) const NOT_INITIALIZED: &str = "The MMDS data store is not initialized.";

impl<M: Machine> Controller<M> {
    pub(super) fn put_metadata(&mut self, data: MmdsData) -> Answer {
        if !self.view.0.lock().has_store() {
            return Err(Area::Mmds.fault(NOT_INITIALIZED));
        }
        self.keep_metadata(data)
    }

    pub(super) fn patch_metadata(&mut self, patch: MmdsData) -> Answer {
        let known = self.view.0.lock().metadata.clone();
        let Some(mut data) = known else {
            return Err(Area::Mmds.fault(NOT_INITIALIZED));
        };
        merge(&mut data, patch);
        self.keep_metadata(data)
    }

    fn keep_metadata(&mut self, data: MmdsData) -> Answer {
        // It was JSON a moment ago.
        let bytes = serde_json::to_string(&data).map_or(usize::MAX, |json| json.len());
        if bytes > self.metadata_bytes_max {
            return Err(Area::MmdsLimit.fault(format!(
                "The MMDS patch request doesn't fit. It makes {bytes} bytes; allowed: {}",
                self.metadata_bytes_max
            )));
        }
        self.machine.put_metadata(&data);
        self.view.0.lock().metadata = Some(data);
        Ok(Reply::Done)
    }
}
