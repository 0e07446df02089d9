//! Root file systems of what somebody else packed: a tar, an OCI archive, what `docker save` writes. They are refused, or
//! become an image. The first byte says how an archive is made of the rest.

use std::path::PathBuf;
use std::sync::LazyLock;

use lightv_rootfs::{BuildRequest, Compression, Format, Source, build};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::file::InputFile;
use crate::script::{Input, bytes};

/// Blocks of a layer that an input names by one byte.
const BLOCK_BYTES: usize = 512;
/// Layers of one input.
const LAYERS_MAX: usize = 4;
const AGENT: &[u8] = b"\x7fELF agent";

static FOLDER: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("the host has a folder"));

/// Data that unpack to far more than they are would take long: the decoders are not ours.
fn is_packed(archive: &[u8]) -> bool {
    archive.starts_with(&[0x1f, 0x8b])
        || archive.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || matches!(archive, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The first byte says how an archive is made of the rest.
pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let archive = match kind % 4 {
        0 => rest.to_vec(),
        1 => repaired(rest.to_vec()),
        2 => oci(rest),
        _ => docker(rest),
    };
    if is_packed(&archive) {
        return;
    }
    let file = InputFile::new(&archive);
    let Ok(source) = Source::detect(&file.path()) else {
        return;
    };
    let out: PathBuf = FOLDER.path().join("root.erofs");
    let request = BuildRequest {
        source: &source,
        out: &out,
        format: None,
        compression: Compression::None,
        size_mib: None,
        agent: AGENT,
        copies: &[],
    };
    match build(&request) {
        Ok(built) => {
            assert!(built.bytes > 0);
            let is_made = source.ready_format().is_none();
            assert!(!is_made || built.format == Format::Erofs);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The tar with right checksums in whatever may be a header.
fn repaired(mut tar: Vec<u8>) -> Vec<u8> {
    for block in tar.chunks_exact_mut(BLOCK_BYTES) {
        let is_header = block.get(257..262) == Some(b"ustar");
        if is_header {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    tar
}

fn layers(rest: &[u8]) -> Vec<Vec<u8>> {
    let mut input = Input::new(rest);
    let mut layers = Vec::new();
    for _ in 0..LAYERS_MAX {
        let Ok(blocks) = input.arbitrary::<u8>() else {
            break;
        };
        let length = (usize::from(blocks % 16) * BLOCK_BYTES).min(input.len());
        let Ok(layer) = input.bytes(length) else {
            break;
        };
        let layer = repaired(layer.to_vec());
        if length == 0 || is_packed(&layer) {
            break;
        }
        layers.push(layer);
    }
    layers
}

fn digest(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes);
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let added = builder.append_data(&mut header, name, content.as_slice());
        added.expect("a short name");
    }
    builder.into_inner().expect("it is in memory")
}

/// The configuration of an image: of the input its beginning, if it is JSON.
fn configuration<'a>(rest: &'a [u8], layers: &[Vec<u8>]) -> serde_json::Value {
    let mut input = Input::new(rest);
    let program: Option<serde_json::Value> = bytes(&mut input)
        .ok()
        .and_then(|text: &'a [u8]| serde_json::from_slice(text).ok());
    let diff_ids = layers
        .iter()
        .map(|layer| format!("sha256:{}", digest(layer)));
    json!({
        "architecture": "amd64", "os": "linux", "config": program,
        "rootfs": {"type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>()},
    })
}

/// What follows the configuration.
fn after_configuration(rest: &[u8]) -> &[u8] {
    let length = rest.first().map_or(0, |length| 1 + usize::from(*length));
    rest.get(length..).unwrap_or_default()
}

fn oci(rest: &[u8]) -> Vec<u8> {
    let layers = layers(after_configuration(rest));
    let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", digest(bytes)), bytes.to_vec());
    let described = |kind: &str, bytes: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len(),
        })
    };
    let config = configuration(rest, &layers).to_string().into_bytes();
    let named = layers.iter().map(|layer| described("layer.v1.tar", layer));
    let manifest = json!({
        "schemaVersion": 2, "config": described("config.v1+json", &config),
        "layers": named.collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2, "manifests": [described("manifest.v1+json", &manifest)],
    });
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.to_string().into_bytes()),
        blob(&manifest),
        blob(&config),
    ];
    files.extend(layers.iter().map(|layer| blob(layer)));
    archive(&files)
}

fn docker(rest: &[u8]) -> Vec<u8> {
    let layers = layers(after_configuration(rest));
    let config = configuration(rest, &layers).to_string().into_bytes();
    let names: Vec<String> = (0..layers.len())
        .map(|number| format!("{number}/layer.tar"))
        .collect();
    let manifest = json!([{"Config": "config.json", "Layers": names}]);
    let mut files = vec![
        (
            "manifest.json".to_owned(),
            manifest.to_string().into_bytes(),
        ),
        ("config.json".to_owned(), config),
    ];
    files.extend(names.into_iter().zip(layers));
    archive(&files)
}
