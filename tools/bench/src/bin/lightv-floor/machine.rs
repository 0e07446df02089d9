//! The floor's machine: as few calls as a guest needs, in the order that costs least.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuExit};

use crate::guest;
use crate::sys::{self, Access};

/// Why the floor could not be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FloorError {
    #[error("Cannot {step} {file}: {cause}")]
    File {
        step: &'static str,
        file: String,
        cause: io::Error,
    },
    #[error("{call}: {cause}")]
    Kvm {
        call: &'static str,
        cause: kvm_ioctls::Error,
    },
    #[error("The file is no floor: its CPUID table is damaged")]
    Cpuid,
    #[error("The guest left with {0} instead of ringing its doorbell")]
    Exit(String),
}

/// Bytes of one CPUID entry in the file: seven 32-bit numbers.
const ENTRY_BYTES: usize = 28;

/// Writes guest memory, and behind it the CPUID table: asking KVM for it is no part of a restore.
pub(crate) fn prepare(path: &Path, read: u32, written: u32) -> Result<(), FloorError> {
    let kvm = Kvm::new().map_err(on("Open /dev/kvm"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(on("KVM_GET_SUPPORTED_CPUID"))?;
    let entries: Vec<u8> = cpuid.as_slice().iter().flat_map(encode).collect();
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&guest::memory(read, written))?;
        file.set_len(guest::RAM_BYTES)?;
        file.seek(SeekFrom::Start(guest::RAM_BYTES))?;
        file.write_all(&entries)
    };
    write().map_err(on_file("write", path))
}

/// Restores the guest of `path`, runs it to its doorbell, and gives out one byte.
pub(crate) fn run(path: &Path) -> Result<(), FloorError> {
    let kvm = Kvm::new().map_err(on("Open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(on("KVM_CREATE_VM"))?;

    let mut file = File::open(path).map_err(on_file("open", path))?;
    let map = on_file("map", path);
    let ram = sys::map(Some(&file), guest::RAM_BYTES).map_err(map)?;
    let doorbell = sys::map(None, 4096).map_err(on_file("map", path))?;
    sys::set_slot(&vm, 0, 0, ram, Access::ReadWrite).map_err(on("Memory slot 0"))?;
    sys::set_slot(&vm, 1, guest::DOORBELL, doorbell, Access::ReadOnly)
        .map_err(on("Memory slot 1"))?;

    let split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [24, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&split).map_err(on("KVM_CAP_SPLIT_IRQCHIP"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(on("KVM_CREATE_VCPU"))?;
    let cpuid = read_cpuid(&mut file).map_err(on_file("read", path))?;
    vcpu.set_cpuid2(&cpuid.ok_or(FloorError::Cpuid)?)
        .map_err(on("KVM_SET_CPUID2"))?;
    vcpu.set_sregs(&guest::sregs())
        .map_err(on("KVM_SET_SREGS"))?;
    vcpu.set_regs(&guest::regs()).map_err(on("KVM_SET_REGS"))?;

    match vcpu.run().map_err(on("KVM_RUN"))? {
        VcpuExit::MmioWrite(guest::DOORBELL, _) => {}
        other => return Err(FloorError::Exit(format!("{other:?}"))),
    }
    // Unbuffered: one write, as the monitor does for a guest's text.
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(b"\n")
        .and_then(|()| stdout.flush())
        .map_err(on_file("write", path))
}

fn read_cpuid(file: &mut File) -> io::Result<Option<CpuId>> {
    let mut bytes = Vec::with_capacity(KVM_MAX_CPUID_ENTRIES * ENTRY_BYTES);
    file.seek(SeekFrom::Start(guest::RAM_BYTES))?;
    file.read_to_end(&mut bytes)?;
    let entries: Option<Vec<_>> = bytes.chunks(ENTRY_BYTES).map(decode).collect();
    Ok(entries.and_then(|entries| CpuId::from_entries(&entries).ok()))
}

fn encode(entry: &kvm_cpuid_entry2) -> Vec<u8> {
    let kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..
    } = *entry;
    [function, index, flags, eax, ebx, ecx, edx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

fn decode(bytes: &[u8]) -> Option<kvm_cpuid_entry2> {
    let mut words = [0; ENTRY_BYTES / 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
        *word = u32::from_le_bytes(bytes.try_into().ok()?);
    }
    let [function, index, flags, eax, ebx, ecx, edx] = words;
    let is_whole = bytes.len() == ENTRY_BYTES;
    is_whole.then(|| kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    })
}

fn on(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> FloorError {
    move |cause| FloorError::Kvm { call, cause }
}

fn on_file(step: &'static str, path: &Path) -> impl Fn(io::Error) -> FloorError {
    let file = path.display().to_string();
    move |cause| FloorError::File {
        step,
        file: file.clone(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_entries_survive_the_file() {
        let entry = kvm_cpuid_entry2 {
            function: 1,
            index: 2,
            flags: 3,
            eax: 4,
            ebx: 5,
            ecx: 6,
            edx: 7,
            ..Default::default()
        };
        let bytes = encode(&entry);
        assert_eq!(decode(&bytes), Some(entry));
        assert_eq!(decode(&bytes[..27]), None);
    }
}
