//! What is accepted of an archive that somebody else made. Each bound is far above what real images have.

/// Files, folders and links of all layers together. Images of whole distributions have some 200,000.
pub(crate) const ENTRIES_MAX: usize = 2_000_000;
/// Bytes of names, link targets and extended attributes of all layers together: these are held in memory.
pub(crate) const METADATA_BYTES_MAX: usize = 512 << 20;
/// Bytes of a path, and of a link's target: PATH_MAX of Linux without its NUL.
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// Bytes of one name: NAME_MAX of Linux.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Folders in folders: the tree is walked by recursion.
pub(crate) const DEPTH_MAX: usize = 256;
/// Symlinks followed on the way to one entry's folder: as Linux does.
pub(crate) const SYMLINKS_MAX: usize = 40;
/// Folders and symlinks passed on the way to all entries together. Real images pass some ten an entry; symlinks of
/// symlinks could make it a hundred thousand.
pub(crate) const STEPS_MAX: u64 = 1 << 28;
/// Bytes of the name of a file of a container image: other files of an archive are none. A blob's has 77.
pub(crate) const IMAGE_FILE_NAME_BYTES_MAX: usize = 256;
/// Bytes of one extended attribute's name: XATTR_NAME_MAX of Linux.
pub(crate) const XATTR_NAME_BYTES_MAX: usize = 255;
/// Bytes of one extended attribute's value: erofs counts them in 16 bits.
pub(crate) const XATTR_VALUE_BYTES_MAX: usize = 0xffff;
/// Bytes of all extended attributes of one file: erofs counts words in 16 bits, with some space for headers.
pub(crate) const XATTRS_BYTES_MAX: usize = 128 << 10;
/// Bytes of one extended attribute, name and value, where `fakeroot` carries it: its messages have 1,024 bytes.
pub(crate) const STAGED_XATTR_BYTES_MAX: usize = 1000;
/// Bytes of one extension header (long names, PAX records) of a tar.
pub(crate) const TAR_EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Bytes of one file: what the size field of a tar header holds without extensions.
pub(crate) const FILE_BYTES_MAX: u64 = (8 << 30) - 1;
/// Bytes of the unpacked layers together: a layer of some MiB can unpack to anything.
pub(crate) const UNPACKED_BYTES_MAX: u64 = 64 << 30;
/// Layers of an image: twice Docker's own bound. Each may hold a file open.
pub(crate) const LAYERS_MAX: usize = 256;
/// Bytes of one JSON document of an image.
pub(crate) const JSON_BYTES_MAX: u64 = 4 << 20;
/// Indexes in indexes.
pub(crate) const INDEX_DEPTH_MAX: usize = 4;
/// Bytes of what a failed tool said that an error repeats: the last ones.
pub(crate) const TOOL_TEXT_BYTES_MAX: usize = 2000;
/// Bytes of a build file.
pub(crate) const BUILD_FILE_BYTES_MAX: u64 = 1 << 20;
