//! OCI image layouts (OCI image specification 1.1): index → manifest → configuration and layers.

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os,
};

use crate::blobs::{self, Blobs, ReadImageError};
use crate::limits::INDEX_DEPTH_MAX;
use crate::settings::ProgramSettings;
use crate::tree::Tree;
use crate::unpack::Spool;

/// Marks a folder or archive as a layout.
pub(crate) const LAYOUT_FILE: &str = "oci-layout";
/// What the layout holds.
pub(crate) const INDEX_FILE: &str = "index.json";

/// Docker's name for an index.
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The key under which tools put an image's tag (OCI image specification, annotations).
const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// `docker buildx` marks its attestations so: they are no images.
const ATTESTATION_ANNOTATION: &str = "vnd.docker.reference.type";

/// Adds the image for linux/amd64 to the tree.
pub(crate) fn read_layout(
    blobs: &Blobs,
    tree: &mut Tree,
    spool: &mut Spool,
) -> Result<ProgramSettings, ReadImageError> {
    let index: ImageIndex = blobs.json(INDEX_FILE)?;
    let mut images = Vec::new();
    collect(blobs, &index, 1, &mut images)?;
    let image = choose(images)?;
    let layers = image.manifest.layers();
    blobs::check_layer_count(layers.len())?;
    for (number, layer) in layers.iter().enumerate() {
        let blob = blobs.blob(layer.digest().as_ref(), layer.size())?;
        blobs::add_layer(&blob, number, None, (tree, spool))?;
    }
    let config = image.config.config().as_ref();
    Ok(config.map(ProgramSettings::of).unwrap_or_default())
}

/// An image of the layout.
#[derive(Debug)]
struct Image {
    name: String,
    digest: String,
    manifest: ImageManifest,
    config: ImageConfiguration,
}

/// What there is: images that may be meant, and platforms of the others.
#[derive(Debug)]
enum Found {
    Ours(Box<Image>),
    Other(String),
}

fn collect(
    blobs: &Blobs,
    index: &ImageIndex,
    depth: usize,
    found: &mut Vec<Found>,
) -> Result<(), ReadImageError> {
    if depth > INDEX_DEPTH_MAX {
        return Err(ReadImageError::DeepIndex);
    }
    blobs::check_layer_count(index.manifests().len())?;
    for descriptor in index.manifests() {
        if is_attestation(descriptor) {
            continue;
        }
        if let Some(platform) = descriptor.platform()
            && !is_ours(platform.os(), platform.architecture())
        {
            let variant = platform.variant().as_deref();
            let text = platform_text(platform.os(), platform.architecture(), variant);
            found.push(Found::Other(text));
            continue;
        }
        let blob = blobs.blob(descriptor.digest().as_ref(), descriptor.size())?;
        if is_index(descriptor.media_type()) {
            collect(blobs, &blob.json()?, depth + 1, found)?;
        } else {
            found.push(read_image(blobs, descriptor, blob.json()?)?);
        }
    }
    Ok(())
}

fn read_image(
    blobs: &Blobs,
    descriptor: &Descriptor,
    manifest: ImageManifest,
) -> Result<Found, ReadImageError> {
    let config = manifest.config();
    let config = blobs.blob(config.digest().as_ref(), config.size())?;
    let config: ImageConfiguration = config.json()?;
    if !is_ours(config.os(), config.architecture()) {
        let variant = config.variant().as_deref();
        let text = platform_text(config.os(), config.architecture(), variant);
        return Ok(Found::Other(text));
    }
    let digest = descriptor.digest().to_string();
    let annotations = descriptor.annotations().as_ref();
    let name = annotations.and_then(|annotations| annotations.get(NAME_ANNOTATION));
    Ok(Found::Ours(Box::new(Image {
        name: name.unwrap_or(&digest).clone(),
        digest,
        manifest,
        config,
    })))
}

/// The one image for linux/amd64; the same one may be there under several names.
fn choose(found: Vec<Found>) -> Result<Image, ReadImageError> {
    let (mut ours, mut others): (Vec<Image>, Vec<String>) = (Vec::new(), Vec::new());
    for image in found {
        match image {
            Found::Ours(image) if ours.iter().any(|known| known.digest == image.digest) => {}
            Found::Ours(image) => ours.push(*image),
            Found::Other(platform) => others.push(platform),
        }
    }
    if ours.len() > 1 {
        let names: Vec<&str> = ours.iter().map(|image| image.name.as_str()).collect();
        return Err(ReadImageError::Several {
            count: ours.len(),
            names: names.join(", "),
        });
    }
    ours.pop().ok_or_else(|| {
        others.sort();
        others.dedup();
        let found = match others.is_empty() {
            true => "no platform at all".to_owned(),
            false => others.join(", "),
        };
        ReadImageError::Platform { found }
    })
}

/// Whether guests can run it.
pub(crate) fn is_ours(os: &Os, architecture: &Arch) -> bool {
    *os == Os::Linux && *architecture == Arch::Amd64
}

/// `linux/arm64/v8`.
pub(crate) fn platform_text(os: &Os, architecture: &Arch, variant: Option<&str>) -> String {
    let variant = variant.filter(|variant| !variant.is_empty());
    let variant = variant.map(|variant| format!("/{variant}"));
    format!("{os}/{architecture}{}", variant.unwrap_or_default())
}

fn is_index(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageIndex => true,
        MediaType::Other(name) => name == DOCKER_INDEX,
        _ => false,
    }
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    let annotations = descriptor.annotations().as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(ATTESTATION_ANNOTATION))
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
