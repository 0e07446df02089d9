//! Files with what was measured, for those who read them: JSON, pictures, pages.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Of a file that anybody may read, as far as the process's umask lets it.
const FILE_MODE: u32 = 0o666;

/// Where a file of this path lies.
pub(crate) fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    folder.unwrap_or(Path::new("."))
}

/// Writes a file that is there as a whole or not at all: under another name, then renamed. What a link leads to is replaced and
/// not the link; a pipe or a device is written to.
///
/// # Errors
/// The kernel's.
pub(crate) fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let found = fs::canonicalize(path);
    let path = found.as_deref().unwrap_or(path);
    if path.exists() && !path.is_file() {
        return fs::write(path, bytes);
    }
    let mut file = tempfile::Builder::new()
        .prefix(".lightv-report-")
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(folder_of(path))?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|refused| refused.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        for text in ["first, and longer", "second"] {
            publish(&path, text.as_bytes()).expect("to be written");
            assert_eq!(fs::read_to_string(&path).expect("the file"), text);
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        publish(&link, b"third").expect("to be written");
        assert_eq!(fs::read(&path).expect("the file"), b"third");
        assert!(link.is_symlink());
        publish(Path::new("/dev/null"), b"goes nowhere").expect("to be written");
        assert!(publish(folder.path(), b"a folder is there").is_err());
        let left = fs::read_dir(folder.path()).expect("the folder");
        assert_eq!(left.count(), 2);
        assert_eq!(folder_of(Path::new("a.json")), Path::new("."));
    }
}
