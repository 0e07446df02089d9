//! The text files of the repository, read once.

use std::fs;
use std::io;
use std::path::Path;

/// What holds nothing of ours. In a worktree `.git` is a file.
const SKIPPED: &[&str] = &[".git", "target"];

/// A longer file is data, not text that people read.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// A text file.
#[derive(Debug)]
pub(super) struct TextFile {
    /// Relative to the repository, with `/`.
    pub(super) path: String,
    pub(super) text: String,
}

impl TextFile {
    /// Lines, each with its number from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }
}

/// All text files, sorted by path.
#[derive(Debug)]
pub(super) struct Tree {
    files: Vec<TextFile>,
}

impl Tree {
    /// Reads every UTF-8 file below `root`.
    pub(super) fn read(root: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        read_folder(root, "", &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    pub(super) fn file(&self, path: &str) -> Option<&TextFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Files whose name ends in `.extension`.
    pub(super) fn with_extension(&self, extension: &str) -> impl Iterator<Item = &TextFile> {
        self.files.iter().filter(move |file| {
            file.path
                .rsplit_once('.')
                .is_some_and(|(_, found)| found == extension)
        })
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &TextFile> {
        self.files.iter()
    }

    /// Whether a file or folder of this name exists.
    pub(super) fn contains(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        path.is_empty()
            || self
                .files
                .iter()
                .any(|file| file.path == path || file.path.starts_with(&folder))
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let files = files
            .iter()
            .map(|(path, text)| TextFile {
                path: (*path).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        Self { files }
    }
}

fn read_folder(root: &Path, folder: &str, files: &mut Vec<TextFile>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if SKIPPED.contains(&name.as_str()) {
            continue;
        }
        let path = if folder.is_empty() {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_folder(root, &path, files)?;
        } else if kind.is_file() && entry.metadata()?.len() <= TEXT_BYTES_MAX {
            // What is not UTF-8 is data; it still counts as a link's target.
            let text = String::from_utf8(fs::read(entry.path())?).unwrap_or_default();
            files.push(TextFile { path, text });
        }
    }
    Ok(())
}
