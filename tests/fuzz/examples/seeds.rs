//! Writes the seeds of all targets: `cargo xtask fuzz --seeds`.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let folder: PathBuf = env::args_os().nth(1).map_or("seeds".into(), PathBuf::from);
    for (target, name, bytes) in lightv_fuzz::seeds::all() {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
