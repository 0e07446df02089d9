//! Gives the linker the guest's own layout. Only link arguments, so that the image comes out right whatever
//! `RUSTFLAGS` the caller brings.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=src/shim.s");
    println!("cargo:rerun-if-changed=src/trampoline.s");
    for arg in [
        "-nostartfiles",
        "-static",
        "-no-pie",
        &format!("-Wl,--script={root}/link.ld"),
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,--gc-sections",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        "-Wl,-z,noexecstack",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
