# The only code that runs at CPL 0 (AT&T syntax).
#
# Why so little: on software KVM every instruction at CPL 0 is emulated at about 1 us, and the emulator fails on SSE,
# xsave, popcnt, int n. So the shim enters long mode, goes to Rust at CPL 3, and comes back only to sleep. Rust at
# CPL 3 has port I/O (by the I/O map) and every address below 4 GiB (user pages), so it programs both APICs by itself; it
# runs with interrupts off, and an interrupt is nothing but the end of a sleep.
#
# Constants come from shim.rs.

.section .note.xen, "a", @note
    # PVH entry point: Xen public header elfnote.h.
    .balign 4
    .long 4, 4, {ELFNOTE_PHYS32_ENTRY}
    .asciz "Xen"
    .long start_pvh

.section .text.shim, "ax", @progbits

# Entry by PVH (Xen docs/misc/pvh.pandoc): 32-bit protected mode, flat segments, paging off, ebx = hvm_start_info.
.code32
.global start_pvh
start_pvh:
    mov $pml4, %eax
    mov %eax, %cr3
    mov ${CR4}, %eax
    mov %eax, %cr4
    mov ${MSR_EFER}, %ecx
    xor %edx, %edx
    mov ${EFER_LME}, %eax
    wrmsr
    mov ${CR0}, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    mov %ebx, %edi
    mov ${PROTOCOL_PVH}, %esi
    ljmp ${KERNEL_CODE}, $enter_user

# Entry by the Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst): long mode, identity mapping,
# rsi = boot_params ("zero page").
.code64
.global start_linux64
start_linux64:
    mov %rsi, %rdi
    mov ${PROTOCOL_LINUX64}, %esi
    mov $pml4, %eax
    mov %rax, %cr3
    mov ${CR4}, %eax
    mov %rax, %cr4
    mov ${CR0}, %eax
    mov %rax, %cr0
    lgdt gdt_pointer

# To guest_main(rdi = boot information, esi = which protocol) at CPL 3.
enter_user:
    mov $shim_stack_top, %esp
    lidt idt_pointer
    mov ${TASK}, %eax
    ltr %ax
    mov $guest_main, %eax

# To the function in rax at CPL 3, with rdi and rsi as its arguments, on an empty user stack.
go_user:
    push ${USER_DATA}
    push $(stack_top - 8)           # as after a call: 8 below a multiple of 16
    push ${USER_FLAGS}
    push ${USER_CODE}
    push %rax
    iretq

# int3 from CPL 3: a service of the shim, by eax. Interrupts are off (interrupt gate).
.global service
service:
    test %eax, %eax
    jnz 2f
    # Sleep until an interrupt has come since the last sleep. sti holds interrupts off for one more instruction, so
    # none is lost between the test and hlt.
    cmpb $0, woken(%rip)
    jne 1f
    sti
    hlt
1:  movb $0, woken(%rip)
    iretq
2:  cmp ${SERVICE_BAD_INSTRUCTION}, %eax
    jne 3f
    addps %xmm0, %xmm0              # software KVM cannot emulate this; hardware just does it
    iretq
3:  lidt no_idt_pointer             # SERVICE_TRIPLE_FAULT
    ud2

# Any device or timer interrupt.
.global interrupt
interrupt:
    movb $1, woken(%rip)
    addr32 movl $0, {APIC_EOI}      # addr32: the address does not fit a sign-extended displacement
    iretq

# Spurious interrupt: must not be answered with EOI (Intel SDM vol. 3 §11.9).
.global interrupt_spurious
interrupt_spurious:
    iretq

# Exceptions 0-31, 16 bytes apart. Each leaves vector and error code on the stack, as in `TrapFrame`.
.global trap_stubs
.balign 16
trap_stubs:
.set vector, 0
.rept 32
    .balign 16
    # 8, 10-14, 17, 21, 29, 30 push an error code themselves.
    .if ((1 << vector) & 0x60227d00) == 0
    push $0
    .endif
    push $vector
    jmp trap
    .set vector, vector + 1
.endr

# The frame stays on the shim's stack, which Rust can read; nothing returns from there.
trap:
    mov %rsp, %rdi
    mov %cr2, %rsi
    mov $guest_trap, %eax
    jmp go_user

.section .hot.shim, "aw", @progbits

.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # KERNEL_CODE: 64-bit, DPL 0, accessed
    .quad 0x00cff3000000ffff        # USER_DATA: DPL 3, accessed
    .quad 0x00affb000000ffff        # USER_CODE: 64-bit, DPL 3, accessed
    .quad tss_descriptor            # TASK: made by link.ld
    .quad 0
gdt_end:

# Task state segment (Intel SDM vol. 3 §8.7): only RSP0 and the I/O map are used. All ports that the map covers are
# allowed at CPL 3 (IOPL would be simpler, but software KVM drops it). The map ends with a byte of ones (§19.5.2).
.balign 16
.global tss                         # link.ld makes its descriptor
tss:
    .long 0
    .quad shim_stack_top
    .fill 11, 8, 0
    .short 0, {TSS_BYTES}
    .fill {IO_MAP_BYTES}, 1, 0
    .byte 0xff

# Filled by Rust (descriptors scatter the address). Until then any exception is a triple fault.
.balign 16
.global idt
idt:
    .fill 2 * {IDT_GATES}, 8, 0
idt_end:

.balign 2
gdt_pointer:
    .short gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .short idt_end - idt - 1
    .quad idt
no_idt_pointer:
    .short 0
    .quad 0

# An interrupt has come since the last sleep.
woken:
    .byte 0

.balign 16
    .fill {SHIM_STACK_BYTES}, 1, 0
shim_stack_top:

# Identity map of the low 4 GiB: 2 MiB pages, user, writable, accessed and dirty already set, so that no walk ever
# writes to these pages. The last 32 MiB, where the APICs are, are not cached. Static: filling them at CPL 0 would
# cost 8 ms on software KVM.
.section .pagetables, "aw", @progbits
.balign 4096
.global pml4
pml4:
    .quad pdpt + {PTE_TABLE}
    .fill 511, 8, 0
pdpt:
    .quad pd + {PTE_TABLE}, pd + 0x1000 + {PTE_TABLE}, pd + 0x2000 + {PTE_TABLE}, pd + 0x3000 + {PTE_TABLE}
    .fill 508, 8, 0
pd:
.set page, 0
.rept 2032
    .quad page + {PTE_PAGE}
    .set page, page + 0x200000
.endr
.rept 16
    .quad page + {PTE_PAGE_UNCACHED}
    .set page, page + 0x200000
.endr

.section .stack, "aw", @nobits
.balign 4096
    .skip {STACK_BYTES}
stack_top:
