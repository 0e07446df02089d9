# Where the other CPUs start: real mode, in a page below 1 MiB that this is copied to. Straight to long mode, because
# on software KVM each of these instructions is emulated (AT&T syntax).

.section .rodata.trampoline, "a", @progbits
.code16
.global trampoline
trampoline:
    mov $pml4, %eax
    mov %eax, %cr3
    mov ${CR4}, %eax
    mov %eax, %cr4
    mov ${MSR_EFER}, %ecx
    mov ${EFER_LME}, %eax
    xor %edx, %edx
    wrmsr
    lgdtl %cs:(trampoline_gdt_pointer - trampoline)
    mov ${CR0}, %eax
    mov %eax, %cr0
    ljmpl ${KERNEL_CODE}, $other_cpu
trampoline_gdt_pointer:
    .short gdt_end - gdt - 1
    .long gdt
.global trampoline_end
trampoline_end:

# In long mode at CPL 0: says that it is there, and sleeps for good.
.section .text.shim, "ax", @progbits
.code64
other_cpu:
    mov ${APIC_ID}, %eax
    mov (%rax), %eax
    shr $24, %eax
    lock btsl %eax, other_cpu_ids(%rip)
    lock incl other_cpus(%rip)
1:  cli
    hlt
    jmp 1b

.section .hot.shim, "aw", @progbits
.balign 8
# A bit for each local APIC identity that has come up.
.global other_cpu_ids
other_cpu_ids:
    .fill 4, 8, 0
# How many have.
.global other_cpus
other_cpus:
    .long 0
