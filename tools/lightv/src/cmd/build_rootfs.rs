//! Options of `lightv build` for Linux guests, and what `lightv.toml` says of the same things.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use lightv_api::config::{Ready, Writable};
use lightv_rootfs::{BuildFile, Compression, CopySpec, FILE_NAME, Format, Owner};

use crate::rootfs::RootfsPlan;

/// A Linux guest of a root file system.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Linux guests")]
pub(crate) struct RootfsArgs {
    /// A root file system: a folder, a tar, an OCI image (layout or archive), or an erofs, squashfs or ext4 image
    #[arg(long, value_name = "PATH", conflicts_with_all = ["initrd", "app"])]
    pub(crate) rootfs: Option<PathBuf>,
    /// Read a build file; options given here win over it
    #[arg(
        short, long, value_name = "FILE", num_args = 0..=1, default_missing_value = FILE_NAME,
        conflicts_with_all = ["initrd", "app"]
    )]
    pub(crate) file: Option<PathBuf>,
    /// Run TEXT by /bin/sh; words of a program's own go after --
    #[arg(long, value_name = "TEXT", conflicts_with = "args")]
    cmd: Option<String>,
    /// First word of the program's command line, before --cmd or the words after --
    #[arg(long, value_name = "WORD")]
    entrypoint: Vec<String>,
    /// Folder that the program starts in
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who runs the program
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Let programs be started in it while it runs (lightv exec); each run has a socket of its own for that
    #[arg(long)]
    exec: bool,
    /// Host name of the guest
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Put a file or folder into the root file system
    #[arg(long, value_name = "FROM:TO", value_parser = parse_copy)]
    copy: Vec<CopySpec>,
    /// Room in memory for what the program writes (default: half of the memory)
    #[arg(long, value_name = "MIB", conflicts_with = "writable")]
    size: Option<u32>,
    /// Where the program writes: memory, nowhere, or an ext4 on one of the guest's disks (/dev/vdb)
    #[arg(long, value_name = "WHERE", value_parser = parse_writable)]
    writable: Option<Writable>,
    /// File system of the image: erofs (default), squashfs, ext4
    #[arg(long, value_name = "FORMAT")]
    fs: Option<Format>,
    /// Compress it
    #[arg(long, value_name = "METHOD")]
    compress: Option<CompressArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressArg {
    /// Not: a page of it needs no copy
    None,
    /// LZ4
    Lz4,
}

/// What tells that a guest is ready to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadySign {
    /// As LightV's agent is told.
    Agent(Ready),
    /// SIGUSR1.
    Signal,
}

impl FromStr for ReadySign {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
        match text.split_once(':') {
            None if text == "exec" => Ok(Self::Agent(Ready::Exec)),
            None if text == "doorbell" => Ok(Self::Agent(Ready::Doorbell)),
            None if text == "signal" => Ok(Self::Signal),
            Some(("listen", number)) => port(number)
                .map(|port| Self::Agent(Ready::Listen(port)))
                .ok_or_else(|| format!("{number:?} is no port; ports are 1–65535")),
            _ => Err("expected exec, doorbell, listen:PORT or signal".to_owned()),
        }
    }
}

fn parse_copy(text: &str) -> Result<CopySpec, String> {
    match text.rsplit_once(':') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(CopySpec {
            from: from.into(),
            to: to.to_owned(),
            mode: None,
            owner: Owner::default(),
        }),
        _ => Err("expected FROM:TO".to_owned()),
    }
}

fn parse_writable(text: &str) -> Result<Writable, String> {
    match text {
        "memory" => Ok(Writable::Memory),
        "nowhere" => Ok(Writable::Nowhere),
        disk if disk.starts_with("/dev/") => Ok(Writable::Disk(disk.to_owned())),
        _ => Err("expected memory, nowhere, or a disk of the guest such as /dev/vdb".to_owned()),
    }
}

impl RootfsArgs {
    /// Whether a root file system is built.
    pub(crate) const fn is_wanted(&self) -> bool {
        self.rootfs.is_some() || self.file.is_some()
    }

    /// What is built: these options first, then those of `file`. `args` are the words after `--`. `None` when neither
    /// names a root file system.
    pub(crate) fn plan(self, file: &BuildFile, args: Vec<String>) -> Option<RootfsPlan> {
        let typed_cmd = match self.cmd {
            Some(text) => Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), text]),
            None => Some(args).filter(|args| !args.is_empty()),
        };
        let typed_entrypoint = Some(self.entrypoint).filter(|words| !words.is_empty());
        // The words that the file has for its own entrypoint are not for another one.
        let file_cmd = file.cmd.clone().filter(|_| typed_entrypoint.is_none());
        let compression = match self.compress {
            Some(CompressArg::None) => Some(Compression::None),
            Some(CompressArg::Lz4) => Some(Compression::Lz4),
            None => file.compression,
        };
        let size = self.size.or(file.size).map(Writable::MemoryMib);
        let mut copies = file.copy.clone();
        copies.extend(self.copy);
        Some(RootfsPlan {
            source: self.rootfs.or_else(|| file.rootfs.clone())?,
            format: self.fs.or(file.format),
            compression: compression.unwrap_or_default(),
            copies,
            entrypoint: typed_entrypoint.or_else(|| file.entrypoint.clone()),
            cmd: typed_cmd.or(file_cmd),
            env: file.env.clone(),
            workdir: self.workdir.or_else(|| file.workdir.clone()),
            user: self.user.or_else(|| file.user.clone()),
            hostname: self.hostname.or_else(|| file.hostname.clone()),
            has_exec: self.exec || file.exec.unwrap_or(false),
            network: Vec::new(),
            ready: file.ready.unwrap_or_default(),
            writable: self.writable.or(size).unwrap_or_default(),
            kernel: file.kernel.clone(),
            cmdline: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_have_names() {
        let parse = |text: &str| text.parse::<ReadySign>();
        assert_eq!(parse("exec"), Ok(ReadySign::Agent(Ready::Exec)));
        assert_eq!(parse("doorbell"), Ok(ReadySign::Agent(Ready::Doorbell)));
        let listen = Ok(ReadySign::Agent(Ready::Listen(80)));
        assert_eq!(parse("listen:80"), listen);
        assert_eq!(parse("signal"), Ok(ReadySign::Signal));
        for text in ["", "listen", "listen:", "listen:0", "listen:65536", "x:1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn copies_and_places_to_write_are_parsed() {
        let copy = parse_copy("a:b/c:/opt/").expect("valid");
        assert_eq!((copy.from, copy.to), ("a:b/c".into(), "/opt/".to_owned()));
        assert!(parse_copy("a").is_err() && parse_copy(":/a").is_err());
        let disk = parse_writable("/dev/vdb");
        assert_eq!(disk, Ok(Writable::Disk("/dev/vdb".into())));
        assert!(parse_writable("vdb").is_err());
    }

    fn file() -> BuildFile {
        BuildFile {
            rootfs: Some("root".into()),
            entrypoint: Some(vec!["entry".into()]),
            cmd: Some(vec!["a".into()]),
            user: Some("www".into()),
            size: Some(16),
            ..BuildFile::default()
        }
    }

    #[test]
    fn what_is_typed_wins_over_the_file() {
        let plan = RootfsArgs::default().plan(&file(), vec![]).expect("a root");
        assert_eq!(plan.source, PathBuf::from("root"));
        assert_eq!(plan.writable, Writable::MemoryMib(16));
        assert_eq!((plan.cmd, plan.user), (file().cmd, file().user));
        let typed = RootfsArgs {
            rootfs: Some("other".into()),
            cmd: Some("echo x".into()),
            user: Some("0".into()),
            writable: Some(Writable::Nowhere),
            ..RootfsArgs::default()
        };
        let plan = typed.plan(&file(), vec![]).expect("a root");
        assert_eq!(plan.source, PathBuf::from("other"));
        assert_eq!(plan.cmd.expect("words"), ["/bin/sh", "-c", "echo x"]);
        assert_eq!(plan.entrypoint, file().entrypoint);
        assert_eq!(plan.writable, Writable::Nowhere);
        assert_eq!(plan.user.as_deref(), Some("0"));
    }

    #[test]
    fn another_entrypoint_does_not_get_the_words_of_the_file() {
        let typed = RootfsArgs {
            entrypoint: vec!["mine".into()],
            ..RootfsArgs::default()
        };
        let plan = typed.plan(&file(), vec![]).expect("a root");
        assert_eq!(
            (plan.entrypoint, plan.cmd),
            (Some(vec!["mine".into()]), None)
        );
        assert!(
            RootfsArgs::default()
                .plan(&BuildFile::default(), vec![])
                .is_none()
        );
    }
}
