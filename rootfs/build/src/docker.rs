//! The archive that `docker save` wrote before version 25, and `podman save` writes: `manifest.json` names one
//! configuration and the layers of each image.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::blobs::{self, Blob, Blobs, ReadImageError};
use crate::digest::Digest;
use crate::oci;
use crate::settings::ProgramSettings;
use crate::tree::Tree;
use crate::unpack::Spool;

/// What the archive holds.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// An image of the archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of an archive; `None` when it is none of Docker's, but one that has a file of that name.
pub(crate) fn images(blobs: &Blobs) -> Option<Vec<DockerImage>> {
    let images: Vec<DockerImage> = blobs.json(MANIFEST_FILE).ok()?;
    let first = images.first()?;
    blobs.contains(&first.config).then_some(images)
}

/// Adds the one image to the tree.
pub(crate) fn read_archive(
    blobs: &Blobs,
    images: &[DockerImage],
    tree: &mut Tree,
    spool: &mut Spool,
) -> Result<ProgramSettings, ReadImageError> {
    let [image] = images else {
        let names = images
            .iter()
            .flat_map(|image| image.repo_tags.iter().flatten());
        let names: Vec<&str> = names.map(String::as_str).collect();
        return Err(ReadImageError::Several {
            count: images.len(),
            names: names.join(", "),
        });
    };
    let config: ImageConfiguration = blobs.json(&image.config)?;
    if !oci::is_ours(config.os(), config.architecture()) {
        let variant = config.variant().as_deref();
        let found = oci::platform_text(config.os(), config.architecture(), variant);
        return Err(ReadImageError::Platform { found });
    }
    blobs::check_layer_count(image.layers.len())?;
    let digests = config.rootfs().diff_ids();
    if digests.len() != image.layers.len() {
        return Err(ReadImageError::LayerDigests {
            layers: image.layers.len(),
            digests: digests.len(),
        });
    }
    for (number, (name, digest)) in image.layers.iter().zip(digests).enumerate() {
        let diff_id = Digest::parse(digest);
        let diff_id = diff_id.ok_or_else(|| ReadImageError::UnsupportedDigest {
            digest: digest.clone(),
        })?;
        let blob = Blob {
            name: name.clone(),
            region: blobs.get(name)?,
        };
        blobs::add_layer(&blob, number, Some(&diff_id), (tree, spool))?;
    }
    let config = config.config().as_ref();
    Ok(config.map(ProgramSettings::of).unwrap_or_default())
}
