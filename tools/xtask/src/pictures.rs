//! Pictures in docs/ of what is on a screen: made by the programs themselves, with real microVMs.

use std::env;
use std::path::{Path, PathBuf};

use crate::build;
use crate::commands::{self, TaskError};

/// Makes all of them anew. They are of release binaries, which are built, or of those in LIGHTV_BIN_DIR.
pub(crate) fn pictures() -> Result<(), TaskError> {
    let bin = match env::var_os("LIGHTV_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            build::release()?;
            commands::release_dir()
        }
    };
    agent_page(&bin, &commands::root().join("docs"))
}

/// docs/agent-page.png: the web page of the host agent in headless Chromium, after a test has used it there as a person would.
fn agent_page(bin: &Path, docs: &Path) -> Result<(), TaskError> {
    let test = "the_page_shows_and_stops_a_machine_over_tls";
    let mut cargo = commands::cargo(&["test", "-p", "lightv-tests", "--test", "agent_web"]);
    cargo.args(["--", "--exact", test]);
    cargo
        .env("LIGHTV_BIN_DIR", bin)
        .env("LIGHTV_PICTURES", docs);
    commands::run(&mut cargo)
}
