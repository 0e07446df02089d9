//! The floor's guest: its memory, as it would lie in an image, and the registers it starts with.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// Guest RAM: what `lightv build` gives a guest when nothing is asked for.
pub(crate) const RAM_BYTES: u64 = 128 << 20;
/// Guest-physical address of a page that is read-only memory, as LightV's control device is; a write to it exits.
pub(crate) const DOORBELL: u64 = 0xc000_0000;
/// At most so many pages are read, and so many written: they lie in the first GiB's mapping.
pub(crate) const PAGES_MAX: u32 = 8192;

const PAGE_BYTES: u64 = 4096;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const LOW_PD: u64 = 0x3000;
const DOORBELL_PD: u64 = 0x4000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x10_0000;

/// Page table bits: present, writable, user, accessed, dirty. Set beforehand, so that no walk writes.
const PRESENT_USER: u64 = 0x67;
const LARGE_PAGE: u64 = 0x80;

/// All memory below the data that is not zero, and the data pages: non-zero, so that the file holds them.
pub(crate) fn memory(read: u32, written: u32) -> Vec<u8> {
    let data_bytes = u64::from(read + written) * PAGE_BYTES;
    let mut memory = vec![0; to_index(DATA)];
    put_u64(&mut memory, PML4, PDPT | PRESENT_USER);
    put_u64(&mut memory, PDPT, LOW_PD | PRESENT_USER);
    put_u64(&mut memory, PDPT + 3 * 8, DOORBELL_PD | PRESENT_USER);
    for entry in 0..512 {
        put_u64(
            &mut memory,
            LOW_PD + entry * 8,
            (entry << 21) | PRESENT_USER | LARGE_PAGE,
        );
    }
    put_u64(
        &mut memory,
        DOORBELL_PD,
        DOORBELL | PRESENT_USER | LARGE_PAGE,
    );
    let code = code(read, written);
    memory[to_index(CODE)..][..code.len()].copy_from_slice(&code);
    memory.resize(to_index(DATA + data_bytes), 0x5a);
    memory
}

/// Reads a byte of each of `read` pages, writes one of each of the `written` that follow, rings the doorbell.
fn code(read: u32, written: u32) -> Vec<u8> {
    let touch = |pages: u32, access: [u8; 2]| {
        let mut code = Vec::new();
        if pages > 0 {
            code.push(0xb9); // mov ecx, pages
            code.extend(pages.to_le_bytes());
            code.extend(access); // mov al, [rdi] or mov [rdi], al
            code.extend([0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00]); // add rdi, 4096
            code.extend([0xff, 0xc9]); // dec ecx
            code.extend([0x75, 0xf3]); // jnz to the access: 2 + 7 + 2 + 2 bytes back
        }
        code
    };
    let mut code = vec![0xbf]; // mov edi, DATA
    code.extend(low_u32(DATA));
    code.extend(touch(read, [0x8a, 0x07]));
    code.extend(touch(written, [0x88, 0x07]));
    code.push(0xbf); // mov edi, DOORBELL
    code.extend(low_u32(DOORBELL));
    code.extend([0x89, 0x07]); // mov [rdi], eax
    code.extend([0xeb, 0xfe]); // jmp to itself
    code
}

/// Where the guest starts.
pub(crate) fn regs() -> kvm_regs {
    kvm_regs {
        rip: CODE,
        rsp: CODE,
        rflags: 2,
        ..Default::default()
    }
}

/// 64-bit mode at CPL 3: such code runs natively on every kind of KVM.
pub(crate) fn sregs() -> kvm_sregs {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x2b,
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: 0x33,
        type_: 11,
        db: 0,
        l: 1,
        ..flat
    };
    let task = kvm_segment {
        limit: 0x67,
        selector: 0x40,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    let no_table = kvm_segment {
        type_: 2,
        unusable: 1,
        ..Default::default()
    };
    kvm_sregs {
        cs: code,
        ds: flat,
        es: flat,
        fs: flat,
        gs: flat,
        ss: flat,
        tr: task,
        ldt: no_table,
        cr0: 0x8001_0033, // PG, WP, NE, ET, MP, PE
        cr3: PML4,
        cr4: 0x620,  // PAE, OSFXSR, OSXMMEXCPT
        efer: 0x500, // LME, LMA
        apic_base: 0xfee0_0900,
        ..Default::default()
    }
}

fn put_u64(memory: &mut [u8], address: u64, value: u64) {
    memory[to_index(address)..][..8].copy_from_slice(&value.to_le_bytes());
}

fn low_u32(address: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = address.to_le_bytes();
    [a, b, c, d]
}

fn to_index(address: u64) -> usize {
    usize::try_from(address).expect("this program is built for 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_jump_back_to_the_access() {
        let code = code(12, 8);
        for (at, access) in [(10, [0x8a, 0x07]), (28, [0x88, 0x07])] {
            assert_eq!(code[at..at + 2], access);
            let back = usize::from(code[at + 12].wrapping_neg());
            assert_eq!(
                at + 13 - back,
                at,
                "the jump at {} leads elsewhere",
                at + 11
            );
        }
    }

    #[test]
    fn memory_holds_every_data_page() {
        assert_eq!(memory(12, 8).len() as u64, DATA + 20 * PAGE_BYTES);
        assert_eq!(memory(0, 0).len() as u64, DATA);
    }
}
