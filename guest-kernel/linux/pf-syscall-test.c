// SPDX-License-Identifier: GPL-2.0
// An init that checks patch 1: what a program gains by a jump to the system call entry with registers of its choice, and
// that signals, ptrace, seccomp and threads work over it.
//
//   gcc -O1 -static -pthread -o init pf-syscall-test.c
//   Initial RAM disk with /init and /dev/console; boot arguments: those of docs/linux-guest.md for software KVM, then
//   `-- lstar=ADDRESS`, the address of entry_SYSCALL_64 in System.map. It closes with `RESULT 0 bad`.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { TF = 0x100, IF = 0x200, IOPL = 0x3000, NT = 0x4000, RF_VM = 0x30000, AC = 0x40000, VIF_VIP = 0x180000 };

static unsigned long entry;
static int bad;

static void check(const char *what, int holds) {
    printf("%s %s\n", holds ? "ok  " : "FAIL", what);
    fflush(stdout);
    bad += !holds;
}

// Jumps to the entry with system call `number`, R11 = `r11`, and RCX = `rcx`, or the next instruction if that is 0.
// Gives the flags with which the program went on.
static unsigned long jump(long number, unsigned long r11, unsigned long rcx, long *result) {
    unsigned long flags;
    long rax = number;
    register unsigned long in_r11 asm("r11") = r11;
    register unsigned long in_r12 asm("r12") = entry;
    register unsigned long in_r13 asm("r13") = rcx;
    asm volatile("test %%r13, %%r13\n\t"
                 "jnz 2f\n\t"
                 "lea 1f(%%rip), %%rcx\n\t"
                 "jmp 3f\n"
                 "2: mov %%r13, %%rcx\n"
                 "3: jmp *%%r12\n"
                 "1: lea -128(%%rsp), %%rsp\n\t"
                 "pushfq\n\t"
                 "pop %%rcx\n\t"
                 "lea 128(%%rsp), %%rsp\n\t"
                 "pushq $2\n\t"
                 "popfq\n\t"
                 : "+a"(rax), "=&c"(flags), "+r"(in_r11)
                 : "r"(in_r12), "r"(in_r13)
                 : "memory", "cc");
    *result = rax;
    return flags;
}

static sigjmp_buf back;
static volatile int signal_seen, traps;
static volatile unsigned long signal_address;

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)context;
    signal_seen = number;
    signal_address = (unsigned long)info->si_addr;
    siglongjmp(back, 1);
}

static void on_trap(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    traps++;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(long)TF;
}

static void on_alarm(int number) { (void)number; }

// Whether a jump to `target` with `rcx` ends in SIGSEGV.
static int faults(unsigned long target, unsigned long rcx) {
    long result;
    unsigned long kept = entry;
    signal_seen = 0;
    entry = target;
    if (!sigsetjmp(back, 1))
        jump(SYS_getpid, IF, rcx, &result);
    entry = kept;
    return signal_seen == SIGSEGV;
}

static void check_flags(void) {
    long result;
    unsigned long flags = jump(SYS_getpid, IF, 0, &result);
    check("a jump is a system call", result == getpid());
    flags = jump(SYS_getpid, ~(unsigned long)(TF | AC), 0, &result);
    check("IOPL, NT, RF, VM, VIF, VIP are cleared", !(flags & (IOPL | NT | RF_VM | VIF_VIP)) && (flags & IF));
    flags = jump(SYS_getpid, 0, 0, &result);
    check("IF is set", flags & IF);
    flags = jump(SYS_getpid, AC | IF, 0, &result);
    check("AC is the program's", flags & AC);
    jump(SYS_getpid, TF | IF, 0, &result);
    check("TF traps in the program", traps == 1);
    check("iopl gives nothing through flags", iopl(3) == 0 && !(jump(SYS_getpid, IOPL | IF, 0, &result) & IOPL));
}

static void check_addresses(void) {
    unsigned long beyond[] = {0x8000000000000000, 0xffffffff81000000, 0x7ffffffff000, 0x800000000000, entry};
    for (size_t i = 0; i < sizeof(beyond) / sizeof(*beyond); i++)
        check("a return beyond user space is SIGSEGV", faults(entry, beyond[i]));
    check("a return to nothing is SIGSEGV there", faults(entry, 0x1000) && signal_address == 0x1000);
    check("a jump past the entry is SIGSEGV", faults(entry + 4, 0));
    signal_seen = 0;
    if (!sigsetjmp(back, 1))
        (void)*(volatile long *)entry;
    check("reading the entry is SIGSEGV", signal_seen == SIGSEGV);
}

static void check_signals(void) {
    int ends[2];
    char byte = 0;
    check("a number too large is ENOSYS", syscall(5000) == -1 && errno == ENOSYS);
    check("-1 is ENOSYS", syscall(-1) == -1 && errno == ENOSYS);
    if (pipe(ends) == 0 && fork() == 0) {
        usleep(300000);
        _exit(write(ends[1], "x", 1) != 1);
    }
    ualarm(60000, 0);
    check("read restarts after a signal", read(ends[0], &byte, 1) == 1 && byte == 'x');
    wait(NULL);
}

static pid_t traced(void) {
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        syscall(SYS_getppid);
        _exit(7);
    }
    return child;
}

// Runs a traced child to its end by `how`; counts stops, and those in getppid.
static void check_ptrace(const char *what, int how, int stops_min, int inside_wanted) {
    int status, stops = 0, inside = 0;
    pid_t child = traced();
    waitpid(child, &status, 0);
    while (stops < 4000) {
        struct user_regs_struct registers;
        ptrace(how, child, 0, 0);
        waitpid(child, &status, 0);
        if (WIFEXITED(status))
            break;
        ptrace(PTRACE_GETREGS, child, 0, &registers);
        inside += registers.orig_rax == SYS_getppid;
        stops++;
    }
    int ended = WIFEXITED(status) && WEXITSTATUS(status) == 7;
    check(what, ended && stops >= stops_min && (inside_wanted < 0 || inside == inside_wanted));
}

static void check_seccomp(void) {
    int status;
    if (fork() == 0) {
        struct sock_filter filter[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 42),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {4, filter};
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
            _exit(1);
        _exit(syscall(SYS_getppid) == -1 && errno == 42 ? 5 : 6);
    }
    wait(&status);
    check("seccomp filters", WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

static void *many_calls(void *argument) {
    for (int i = 0; i < 200; i++)
        syscall(SYS_getppid);
    return argument;
}

static void check_ends(void) {
    int status;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, many_calls, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    if (fork() == 0) {
        unsigned short unmasked = 0x340;
        // 1 / 0 with the exception unmasked: it is pending when the program ends (patch 3).
        asm volatile("fninit\n\tfldcw %0\n\tfldz\n\tfld1\n\tfdiv %%st(1), %%st" ::"m"(unmasked));
        syscall(SYS_exit, 3);
    }
    wait(&status);
    check("a program with a pending x87 exception ends", WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

int main(int count, char **words) {
    for (int i = 1; i < count; i++)
        if (!strncmp(words[i], "lstar=", 6))
            entry = strtoul(words[i] + 6, NULL, 16);
    for (char **variable = environ; *variable; variable++) // the kernel makes NAME=VALUE of its line an environment
        if (!strncmp(*variable, "lstar=", 6))
            entry = strtoul(*variable + 6, NULL, 16);
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    struct sigaction trap = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    struct sigaction alarm_action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGTRAP, &trap, NULL);
    sigaction(SIGALRM, &alarm_action, NULL);
    printf("entry %lx\n", entry);
    check_flags();
    check_addresses();
    check_signals();
    check_ptrace("ptrace sees a system call twice", PTRACE_SYSCALL, 2, 2);
    check_ptrace("single steps go over system calls", PTRACE_SINGLESTEP, 10, -1);
    check_seccomp();
    check_ends();
    printf("RESULT %d bad\n", bad);
    fflush(stdout);
    reboot(RB_AUTOBOOT);
}
