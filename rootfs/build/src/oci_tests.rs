//! Layouts are made here, blob by blob; so are Docker's archives.

use std::collections::HashMap;
use std::error::Error as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::digest::HashingReader;
use crate::docker;
use crate::entry_path::EntryPath;
use crate::region::Region;

fn digest(bytes: &[u8]) -> String {
    HashingReader::new(bytes)
        .finish()
        .expect("in memory")
        .to_string()
}

fn region(bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    Region::whole(file).expect("a region")
}

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Files of a layout in the making.
#[derive(Default)]
struct Layout(HashMap<String, Vec<u8>>);

impl Layout {
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let name = digest.replace("sha256:", "blobs/sha256/");
        self.0.insert(name, bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn json(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    fn image(&mut self, architecture: &str, layers: &[Vec<u8>]) -> Value {
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": ["/bin/app"], "Cmd": ["-x"], "Env": ["A=1=2", "BARE"], "WorkingDir": "/srv",
                "User": "app:app", "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT",
            },
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = self.json("application/vnd.oci.image.config.v1+json", &config);
        let layer_type = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob(layer_type, layer))
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        self.json(media_type, &manifest)
    }

    fn index(&mut self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        self.0.insert(INDEX_FILE.to_owned(), index.into_bytes());
        self.0.insert(
            LAYOUT_FILE.to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
    }

    fn read(&self) -> Result<(Tree, ProgramSettings), ReadImageError> {
        let files = self
            .0
            .iter()
            .map(|(name, bytes)| (name.clone(), region(bytes)));
        read(&Blobs::Archive(files.collect()))
    }
}

fn read(blobs: &Blobs) -> Result<(Tree, ProgramSettings), ReadImageError> {
    let mut tree = Tree::new();
    let mut spool = Spool::new(&std::env::temp_dir());
    let settings = read_layout(blobs, &mut tree, &mut spool)?;
    Ok((tree, settings))
}

fn has(tree: &Tree, path: &str) -> bool {
    tree.find(&EntryPath::parse(path.as_bytes()).expect("a path"))
        .is_some()
}

fn two_layers() -> [Vec<u8>; 2] {
    let lower = tar(&[("old", "1"), ("kept", "2")]);
    [lower, gzip(&tar(&[(".wh.old", ""), ("new", "3")]))]
}

fn with_platform(mut manifest: Value, platform: Value) -> Value {
    manifest["platform"] = platform;
    manifest
}

#[test]
fn layers_and_settings_are_read() {
    let mut layout = Layout::default();
    let image = layout.image("amd64", &two_layers());
    layout.index(&[image]);
    let (tree, settings) = layout.read().expect("valid");
    let found = ["old", "kept", "new"].map(|path| has(&tree, path));
    assert_eq!(found, [false, true, true]);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(settings.entrypoint, ["/bin/app"]);
    assert_eq!(settings.cmd, ["-x"]);
    assert_eq!(settings.env, [("A".to_owned(), "1=2".to_owned())].into());
    assert_eq!(
        (settings.workdir, settings.user),
        (text("/srv"), text("app:app"))
    );
    assert_eq!(settings.exposed_ports, ["80/tcp"]);
    assert_eq!(settings.stop_signal, text("SIGINT"));
}

#[test]
fn a_folder_is_read_as_an_archive_is() {
    let mut layout = Layout::default();
    let image = layout.image("amd64", &two_layers());
    layout.index(&[image]);
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("blobs/sha256")).expect("made");
    for (name, bytes) in &layout.0 {
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    let blobs = Blobs::Folder(folder.path().to_owned());
    let (tree, _) = read(&blobs).expect("valid");
    assert!(has(&tree, "new"));
    // A blob that leads elsewhere is not followed.
    let blob = layout
        .0
        .keys()
        .find(|name| name.starts_with("blobs"))
        .expect("there");
    fs::remove_file(folder.path().join(blob)).expect("removed");
    std::os::unix::fs::symlink(Path::new("/etc/hostname"), folder.path().join(blob))
        .expect("linked");
    assert!(matches!(read(&blobs), Err(ReadImageError::Read { .. })));
}

#[test]
fn the_image_for_our_platform_is_chosen() {
    let mut layout = Layout::default();
    let ours = layout.image("amd64", &[tar(&[("ours", "")])]);
    let ours = with_platform(ours, json!({"os": "linux", "architecture": "amd64"}));
    // Not even there: only its platform is looked at.
    let absent = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2,
        "digest": format!("sha256:{}", "0".repeat(64)),
    });
    let other = with_platform(
        absent.clone(),
        json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
    );
    let mut attestation = absent;
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let inner = json!({"schemaVersion": 2, "manifests": [other, ours.clone(), attestation]});
    let inner = layout.json("application/vnd.oci.image.index.v1+json", &inner);
    layout.index(&[inner, ours]);
    assert!(has(&layout.read().expect("valid").0, "ours"));
}

#[test]
fn other_platforms_are_listed() {
    let mut layout = Layout::default();
    let arm = layout.image("arm64", &[]);
    let windows = with_platform(
        arm.clone(),
        json!({"os": "windows", "architecture": "amd64"}),
    );
    layout.index(&[arm, windows]);
    let text = layout.read().expect_err("none is ours").to_string();
    assert_eq!(
        text,
        "The image is for linux/arm64, windows/amd64; guests are linux/amd64"
    );
    layout.index(&[]);
    let text = layout.read().expect_err("none is there").to_string();
    assert!(text.contains("no platform at all"), "{text}");
}

#[test]
fn several_images_are_named() {
    let mut layout = Layout::default();
    let mut images = ["one", "two"].map(|name| {
        let mut image = layout.image("amd64", &[tar(&[(name, "")])]);
        image["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        image
    });
    layout.index(&images);
    let text = layout.read().expect_err("which?").to_string();
    assert!(
        text.contains("2 images") && text.contains("one, two"),
        "{text}"
    );
    // Two names of one image are one image.
    images[1]["digest"] = images[0]["digest"].clone();
    images[1]["size"] = images[0]["size"].clone();
    layout.index(&images);
    assert!(layout.read().is_ok());
}

#[test]
fn damage_is_found() {
    let mut layout = Layout::default();
    let layers = two_layers();
    let image = layout.image("amd64", &layers);
    layout.index(&[image]);
    let name = digest(&layers[0]).replace("sha256:", "blobs/sha256/");
    layout
        .0
        .insert(name.clone(), tar(&[("bad", "1"), ("kept", "2")]));
    let text = layout.read().expect_err("wrong digest").to_string();
    assert!(
        text.contains(&name) && text.contains("is damaged: its digest"),
        "{text}"
    );
    layout.0.insert(name.clone(), Vec::new());
    let text = layout.read().expect_err("wrong size").to_string();
    assert!(text.contains("it has 0 bytes, not"), "{text}");
    layout.0.remove(&name);
    let text = layout.read().expect_err("not there").to_string();
    assert_eq!(text, format!("The image has no {name}"));
}

#[test]
fn a_truncated_layer_is_found_also_when_its_digest_is_right() {
    let mut layout = Layout::default();
    let content: String = (0..10_000).map(|number| number.to_string()).collect();
    let whole = gzip(&tar(&[("a", &content)]));
    let image = layout.image("amd64", &[whole[..whole.len() / 2].to_vec()]);
    layout.index(&[image]);
    let error = layout.read().expect_err("truncated");
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(
        cause.contains("gzip data cannot be unpacked after"),
        "{error}: {cause}"
    );
}

#[test]
fn indexes_without_end_and_other_digests_are_refused() {
    let mut layout = Layout::default();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let mut index = json!({"schemaVersion": 2, "manifests": []});
    for _ in 0..INDEX_DEPTH_MAX {
        let inner = layout.json(media_type, &index);
        index = json!({"schemaVersion": 2, "manifests": [inner]});
    }
    layout.index(index["manifests"].as_array().expect("an array"));
    assert!(matches!(layout.read(), Err(ReadImageError::DeepIndex)));
    let sha512 = format!("sha512:{}", "0".repeat(128));
    layout.index(&[json!({"mediaType": media_type, "size": 2, "digest": sha512})]);
    assert!(matches!(
        layout.read(),
        Err(ReadImageError::UnsupportedDigest { .. })
    ));
}

fn docker_archive(layer: &[u8], diff_id: &str, architecture: &str) -> Blobs {
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let manifest = json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar"]}]);
    let files = [
        ("c.json", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
        ("l/layer.tar", layer.to_vec()),
    ];
    Blobs::Archive(
        files
            .map(|(name, bytes)| (name.to_owned(), region(&bytes)))
            .into(),
    )
}

fn read_docker(blobs: &Blobs) -> Result<(Tree, ProgramSettings), ReadImageError> {
    let images = docker::images(blobs).expect("it is Docker's");
    let mut tree = Tree::new();
    let mut spool = Spool::new(&std::env::temp_dir());
    let settings = docker::read_archive(blobs, &images, &mut tree, &mut spool)?;
    Ok((tree, settings))
}

#[test]
fn docker_archives_are_read() {
    let layer = tar(&[("a", "1")]);
    // podman packs layers; the digest is of what is unpacked.
    for packed in [layer.clone(), gzip(&layer)] {
        let archive = docker_archive(&packed, &digest(&layer), "amd64");
        let (tree, settings) = read_docker(&archive).expect("valid");
        assert!(has(&tree, "a"));
        assert_eq!(settings.cmd, ["sh"]);
    }
    let archive = docker_archive(&layer, &digest(b"other"), "amd64");
    assert!(matches!(
        read_docker(&archive),
        Err(ReadImageError::Digest { .. })
    ));
    let archive = docker_archive(&layer, &digest(&layer), "s390x");
    let text = read_docker(&archive).expect_err("not ours").to_string();
    assert!(text.contains("linux/s390x"), "{text}");
}

#[test]
fn a_root_with_a_manifest_json_is_no_docker_archive() {
    for content in ["{}", "[]", r#"[{"Config": "absent", "Layers": []}]"#] {
        let files = [("manifest.json".to_owned(), region(content.as_bytes()))];
        assert!(
            docker::images(&Blobs::Archive(files.into())).is_none(),
            "{content}"
        );
    }
}
