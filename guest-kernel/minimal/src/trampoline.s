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

# In long mode at CPL 0: says that it is there, and sleeps for good; or, if that is wanted, changes words at CPL 3 until the
# next INIT. It never comes back to CPL 0 by itself: its task state segment is not loaded.
.section .text.shim, "ax", @progbits
.code64
other_cpu:
    mov ${APIC_ID}, %eax
    mov (%rax), %eax
    shr $24, %eax
    lock btsl %eax, other_cpu_ids(%rip)
    lock incl other_cpus(%rip)
    cmpl $0, flip_wanted(%rip)
    jne 2f
1:  cli
    hlt
    jmp 1b
2:  mov $flip_stack_top, %esp
    push ${USER_DATA}
    push $0
    push ${USER_FLAGS}
    push ${USER_CODE}
    mov $flip, %eax
    push %rax
    iretq

# Changes the word at flip_address back and forth, as long as there is one.
flip:
    mov flip_address(%rip), %rdx
    test %rdx, %rdx
    jz 1f
    mov flip_values(%rip), %rax
    mov %rax, (%rdx)
    mov flip_values + 8(%rip), %rax
    mov %rax, (%rdx)
    incq flip_count(%rip)
    jmp flip
1:  incq flip_idle(%rip)
    pause
    jmp flip

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

.section .data.flip, "aw", @progbits
.balign 8
.global flip_address, flip_values, flip_count, flip_idle, flip_wanted
flip_address:
    .quad 0
flip_values:
    .quad 0, 0
flip_count:
    .quad 0
flip_idle:
    .quad 0
flip_wanted:
    .long 0
.balign 16
    .fill 64, 1, 0
flip_stack_top:
