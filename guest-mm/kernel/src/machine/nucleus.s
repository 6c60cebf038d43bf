# The nucleus: everything of the guest that runs at ring 0. This file: traps, and the manager's calls. How a CPU gets
# there, and the tables it needs for it, are in start.s, which is assembled behind this file.
#
# From its start on (Rust, ring 3) the manager is all that runs but for processes: the nucleus only (a) carries out the
# manager's calls, made with `int3` (number in rax, arguments in rdi, rsi, rdx), and (b) turns whatever happens while a
# process runs into the return value of the call `run`.
#
# Rules. Integer instructions only: some hosts emulate ring 0 one instruction at a time. Interrupts are enabled only
# while a process runs or the CPU idles, so nothing here nests. All of this lies in one 2 MiB supervisor-only page that
# every address space maps. The end of an interrupt is signalled here, before the manager sees the vector: the manager
# runs with interrupts off, so the next one waits until it has served this one.
#
# CPUs share nothing here but the manager's page tables. What is a CPU's own lies in its area, which is aligned to its
# size and has both stacks in it: the stack pointer says which CPU this is.

.set NUCLEUS_BASE,    0x200000
.set NUCLEUS_CODE_32, 0x08
.set NUCLEUS_CODE,    0x10
.set NUCLEUS_DATA,    0x18
.set RING3_DATA,      0x2b
.set RING3_CODE,      0x33
.set TSS_SELECTOR,    0x40              # of CPU 0; the others follow
.set FLAGS_QUIET,     0x2               # rflags with interrupts off

# A trap frame, from the stack pointer upwards, in 8-byte words. `Context` in nucleus.rs starts with the same words.
.set FRAME_RDI,      9*8
.set FRAME_RDX,     11*8
.set FRAME_RCX,     12*8
.set FRAME_RAX,     14*8
.set FRAME_VECTOR,  15*8
.set FRAME_ERROR,   16*8
.set FRAME_RIP,     17*8
.set FRAME_CS,      18*8
.set FRAME_RSP,     20*8
.set FRAME_WORDS,   22
.set CONTEXT_CR3,   22*8
.set CONTEXT_CR2,   23*8
.set CONTEXT_FX,    256

.set VECTOR_CALL,         3             # int3
.set NR_CALLS,            9
.set FIRST_INTERRUPT,     32
.set SPURIOUS_INTERRUPT,  255
.set MSR_EFER,            0xc0000080
.set MSR_X2APIC_EOI,      0x80b
.set MSR_X2APIC_COUNT,    0x838         # initial count of the timer

# A CPU's area: its TSS with the I/O bitmap (all zeros, every port allowed), what follows here, and two stacks.
.set MAX_CPUS,            16            # as in cpu.rs
.set AREAS,               NUCLEUS_BASE + 0x10000
.set AREA_SIZE,           0x4000
.set TSS_RSP0,            4
.set TSS_IO_BASE,         102
.set TSS_LIMIT,           104 + 8192 - 1
.set IO_ALLOWED,          104
.set IO_DENIED,           0xffff        # past the segment's limit: no port allowed
.set CURRENT,             8304          # the running context; 0 while the manager or the nucleus runs
.set STACKS,              8312          # the CPU's stacks at ring 3 (cpu.rs)
.set FAULTED,             8320          # whether the manager has failed on this CPU
.set PROCESS_FRAME_END,   9216          # the stack of traps out of a process: exactly one frame, then it is copied
.set PROCESS_FRAME,       PROCESS_FRAME_END - FRAME_WORDS*8
.set MANAGER_FRAME,       AREA_SIZE - FRAME_WORDS*8     # the one frame of a call, on a stack that was empty
.set FAULT_STACK_END,     0x8000        # from STACKS on
.set MANAGER_STACK_END,   0x40000

.macro write_msr register               # eax: the value
    mov ecx, \register
    xor edx, edx
    wrmsr
.endm

.section .nucleus, "awx", @progbits
.code64
vectors:                                # at NUCLEUS_BASE, 16 bytes each; every frame gets an error code
.set i, 0
.rept 256
    .align 16
    .if (i == 8) || ((i >= 10) && (i <= 14)) || (i == 17) || (i == 21) || (i == 29) || (i == 30)
    .else
    push 0
    .endif
    push i
    jmp trap
    .set i, i + 1
.endr

.align 16
trap:
    .irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    push \register
    .endr
    cld
    mov rbp, rsp                        # rbp: this CPU's area, rbx: the vector, from here on
    and rbp, -AREA_SIZE
    mov rbx, [rsp + FRAME_VECTOR]
    cmp rbx, FIRST_INTERRUPT
    jb 2f
    cmp rbx, SPURIOUS_INTERRUPT
    je 2f
    xor eax, eax
    write_msr MSR_X2APIC_EOI
2:  cmp qword ptr [rbp + CURRENT], 0
    jne from_process
    cmp qword ptr [rsp + FRAME_CS], NUCLEUS_CODE
    je from_nucleus
    cmp rbx, VECTOR_CALL
    jne manager_fault
    mov rax, [rsp + FRAME_RAX]
    cmp rax, NR_CALLS
    jae manager_fault
    jmp qword ptr [calls + rax*8]

from_process:                           # `run` returns the vector; the process's state goes into its context
    mov rax, cr2
    mov rdx, [manager_root]
    mov cr3, rdx
    mov rdi, [rbp + CURRENT]
    fxsave64 [rdi + CONTEXT_FX]
    fxrstor64 [manager_fx]
    mov [rdi + CONTEXT_CR2], rax
    mov rsi, rsp
    mov ecx, FRAME_WORDS
    rep movsq
    mov qword ptr [rbp + CURRENT], 0
    lea rax, [rbp + AREA_SIZE]
    mov [rbp + TSS_RSP0], rax
    mov word ptr [rbp + TSS_IO_BASE], IO_ALLOWED
    jmp return_vector
from_nucleus:                           # an interrupt ended `idle`; an exception here is the manager's fault
    cmp rbx, FIRST_INTERRUPT
    jb manager_fault
return_vector:
    lea rsp, [rbp + MANAGER_FRAME]
    mov [rsp + FRAME_RAX], rbx
    jmp trap_return

call_run:                               # rdi: context, rsi: as for `arm_timer`
    call arm_timer
    mov [rbp + CURRENT], rdi
    fxrstor64 [rdi + CONTEXT_FX]
    mov rax, [rdi + CONTEXT_CR3]
    mov rsi, rdi
    lea rsp, [rbp + PROCESS_FRAME]
    mov rdi, rsp
    mov ecx, FRAME_WORDS
    rep movsq
    mov [rbp + TSS_RSP0], rdi           # PROCESS_FRAME_END, by now
    mov word ptr [rbp + TSS_IO_BASE], IO_DENIED
    mov cr3, rax
    jmp trap_return

call_idle:                              # rsi: as for `arm_timer`; returns the vector
    call arm_timer
2:  sti                                 # takes effect after the next instruction: no interrupt is slept through
    hlt
    jmp 2b                              # not reached by interrupts, they leave through from_nucleus

arm_timer:                              # esi: timer count or 0 to leave the timer alone
    mov eax, esi
    test eax, eax
    jz 2f
    write_msr MSR_X2APIC_COUNT
2:  ret

call_set_root:                          # rdi: the manager's page-table root; also forgets this CPU's translations
    mov [manager_root], rdi
    mov cr3, rdi
    jmp trap_return

call_invalidate:                        # rdi: an address whose translation changed, in the manager's page tables
    invlpg [rdi]
    jmp trap_return

call_read_msr:                          # rdi: which; returns the value
    mov ecx, edi
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov [rsp + FRAME_RAX], rax
    jmp trap_return

call_write_msr:                         # rdi: which, rsi: the value
    mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
    wrmsr
    jmp trap_return

call_cpuid:                             # rdi: leaf, rsi: subleaf; returns eax, ebx, ecx, edx in rax, rdi, rcx, rdx
    mov eax, edi
    mov ecx, esi
    cpuid
    mov [rsp + FRAME_RAX], rax
    mov [rsp + FRAME_RDI], rbx
    mov [rsp + FRAME_RCX], rcx
    mov [rsp + FRAME_RDX], rdx
    jmp trap_return

call_write_port:                        # rdi: port, rsi: bytes, rdx: how many
    mov rcx, rdx
    mov edx, edi
    rep outsb
    jmp trap_return

manager_fault:                          # tells the manager, on a stack for this; a second fault resets the machine
    cmp byte ptr [rbp + FAULTED], 0
    jne reset
    mov byte ptr [rbp + FAULTED], 1
    mov rdi, rbx
    mov rsi, [rsp + FRAME_ERROR]
    mov rdx, [rsp + FRAME_RIP]
    mov rcx, cr2
    mov r8, [rsp + FRAME_RSP]
    mov rax, [rbp + STACKS]
    add rax, FAULT_STACK_END - 8
    mov rbx, offset manager_fault_entry
enter_manager:                          # rbx: a function, rdi, rsi, ...: its arguments, rax: stack, 16-byte aligned - 8
    push RING3_DATA
    push rax
    push FLAGS_QUIET
    push RING3_CODE
    push rbx
    xor ebp, ebp
    iretq
reset:                                  # also a call
    lidt [no_idt]                       # no handler can be found: a triple fault, which resets the machine
    ud2

trap_return:
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
    pop \register
    .endr
    add rsp, 16                         # vector and error code
    iretq

.align 16
calls:                                  # the numbers are `Call` in nucleus.rs
    .quad call_run, call_idle, call_set_root, call_invalidate
    .quad call_read_msr, call_write_msr, call_cpuid, call_write_port, reset
.org calls + NR_CALLS*8                 # fails to assemble when there are more

.align 16
manager_fx:                             # a fresh x87/SSE state: the manager keeps nothing there across `run`
    .word 0x037f
    .fill 22, 1, 0
    .long 0x1f80
    .fill 484, 1, 0
manager_root:  .quad boot_pml4          # below 4 GiB, where CPUs start
