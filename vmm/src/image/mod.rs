//! The `.lv` image: one file that holds a machine, mapped and not unpacked. Format: docs/snapshot-format.md.
//!
//! [`header`] is what can be read without decoding anything; [`read`] opens an image and proves its bytes;
//! [`write`] makes one, whole or not at all; [`manifest`] is what stands in it in words; [`disk`] is about disks
//! in an image.

pub mod disk;
pub mod header;
pub mod manifest;
pub mod read;
pub mod write;
