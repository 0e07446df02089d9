//! Pictures in docs/ of what is on a screen: made by the programs themselves, with real microVMs.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::build;
use crate::commands::{self, TaskError};

/// The browser, unless LIGHTV_CHROMIUM names another: Debian's package of that name.
const CHROMIUM: &str = "chromium-headless-shell";

/// Makes all of them anew. They are of release binaries, which are built, or of those in LIGHTV_BIN_DIR.
pub(crate) fn pictures() -> Result<(), TaskError> {
    let bin = match env::var_os("LIGHTV_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            build::release()?;
            commands::release_dir()
        }
    };
    let docs = commands::root().join("docs");
    // The host agent's page in a browser, after a test has used it there as a person would.
    by_test(
        (&bin, &docs),
        "agent_web",
        "a_browser_shows_machines_that_come_and_go_and_stops_one",
    )?;
    // The screen of `lightv top`, as the test of it sees it.
    by_test(
        (&bin, &docs),
        "top",
        "microvms_are_watched_filtered_and_killed",
    )?;
    profile(&bin, &docs)
}

/// The pictures that `test` of `file` makes of what it sees.
fn by_test((bin, docs): (&Path, &Path), file: &str, test: &str) -> Result<(), TaskError> {
    let mut cargo = commands::cargo(&["test", "-p", "lightv-tests", "--test", file]);
    cargo.args(["--", "--exact", test]);
    cargo
        .env("LIGHTV_BIN_DIR", bin)
        .env("LIGHTV_PICTURES", docs);
    commands::run(&mut cargo)
}

/// docs/profile.png: the page of `lightv profile`, as a browser shows it.
fn profile(bin: &Path, docs: &Path) -> Result<(), TaskError> {
    let folder = commands::target_dir().join("pictures");
    fs::create_dir_all(&folder).map_err(|cause| TaskError::File {
        path: folder.clone(),
        cause,
    })?;
    let page = folder.join("profile.html");
    let mut lightv = Command::new(bin.join("lightv"));
    lightv.args(["profile", "hello-world", "--html"]).arg(&page);
    commands::run(&mut lightv)?;
    screenshot(&page, (1112, 1000), &docs.join("profile.png"))
}

/// Has the browser show the file `page` in a window of that size, and writes what it shows as a PNG file.
fn screenshot(page: &Path, (width, height): (u32, u32), picture: &Path) -> Result<(), TaskError> {
    let mut option = OsString::from("--screenshot=");
    option.push(picture);
    let mut url = OsString::from("file://");
    url.push(page);
    let program = env::var_os("LIGHTV_CHROMIUM").unwrap_or_else(|| CHROMIUM.into());
    let mut chromium = Command::new(program);
    // Its own sandbox is not for root; the page is ours.
    chromium
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .arg(format!("--window-size={width},{height}"))
        .arg(option)
        .arg(url)
        // It misses a desktop, at length.
        .stderr(Stdio::null());
    commands::run(&mut chromium)
}
