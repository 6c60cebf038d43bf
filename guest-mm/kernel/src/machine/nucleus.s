# The nucleus: everything of the guest that runs at ring 0.
#
# It enters long mode from the PVH entry point (32-bit, paging off, ebx = hvm_start_info), then starts the manager
# (Rust, ring 3) and from then on only (a) carries out the manager's calls, made with `int3` (number in rax, arguments
# in rdi, rsi, rdx), and (b) turns whatever happens while a process runs into the return value of the call `run`.
#
# Rules. Integer instructions only: some hosts emulate ring 0 one instruction at a time. Interrupts are enabled only
# while a process runs or the CPU idles, so nothing here nests. All of this lies in one 2 MiB supervisor-only page that
# every address space maps. The end of an interrupt is signalled here, before the manager sees the vector: the manager
# runs with interrupts off, so the next one waits until it has served this one.

.set NUCLEUS_BASE,  0x200000
.set NUCLEUS_CODE,  0x10
.set NUCLEUS_DATA,  0x18
.set RING3_DATA,    0x2b
.set RING3_CODE,    0x33
.set TSS_SELECTOR,  0x40
.set FLAGS_QUIET,   0x2                 # rflags with interrupts off

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
.set TSS_RSP0,            4
.set TSS_IO_BASE,         102
.set TSS_SIZE,            104
.set IO_ALLOWED,          TSS_SIZE      # the I/O bitmap: all zeros, every port allowed
.set IO_DENIED,           0xffff        # past the segment's limit: no port allowed

.section .note.pvh, "a", @note
.align 4
.long 4, 4, 18                          # sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long pvh_start

.section .nucleus, "awx", @progbits
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov [start_info], ebx
    mov eax, cr4
    or eax, 0x620                       # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, 0x900                       # long mode, no-execute
    wrmsr
    mov eax, 0x80010033                 # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                          # far jump: the assembler has no Intel spelling for it here
    .long long_mode
    .word NUCLEUS_CODE

.code64
long_mode:
    mov ax, NUCLEUS_DATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov rsp, offset trap_stack_top
    mov rax, offset tss                 # the descriptor holds the base in pieces
    mov word ptr [gdt_tss + 2], ax
    shr rax, 16
    mov byte ptr [gdt_tss + 4], al
    mov byte ptr [gdt_tss + 7], ah
    mov rax, offset trap_stack_top
    mov [tss + TSS_RSP0], rax
    mov ax, TSS_SELECTOR
    ltr ax
    mov rdi, offset idt                 # 256 interrupt gates
    mov rax, offset vectors
    mov ecx, 256
2:  mov [rdi], ax
    mov word ptr [rdi + 2], NUCLEUS_CODE
    mov word ptr [rdi + 4], 0x8e00
    mov rdx, rax
    shr rdx, 16
    mov [rdi + 6], dx
    mov qword ptr [rdi + 8], 0
    add rdi, 16
    add rax, 16
    dec ecx
    jnz 2b
    or word ptr [idt + VECTOR_CALL*16 + 4], 0x6000   # ring 3 may use int3 and nothing else
    lidt [idt_pointer]
    fxrstor64 [manager_fx]
    mov edi, [start_info]
    push RING3_DATA
    mov rax, offset manager_stack_top - 8            # as after a call: 16-byte aligned plus 8
    push rax
    push FLAGS_QUIET
    push RING3_CODE
    mov rax, offset manager_main
    push rax
    xor ebp, ebp
    iretq

.align 16
vectors:                                # 16 bytes each; every frame gets an error code
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
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rbx, [rsp + FRAME_VECTOR]
    cmp rbx, FIRST_INTERRUPT
    jb 2f
    cmp rbx, SPURIOUS_INTERRUPT
    je 2f
    mov ecx, MSR_X2APIC_EOI
    xor eax, eax
    xor edx, edx
    wrmsr
2:  cmp qword ptr [current], 0
    jne from_process
    cmp qword ptr [rsp + FRAME_CS], NUCLEUS_CODE
    je from_nucleus
    cmp rbx, VECTOR_CALL
    jne manager_fault
    mov rax, [rsp + FRAME_RAX]
    cmp rax, NR_CALLS
    jae manager_fault
    jmp qword ptr [calls + rax*8]

from_nucleus:                           # an interrupt ended `idle`; an exception here is the manager's fault
    cmp rbx, FIRST_INTERRUPT
    jb manager_fault
    mov rsp, [manager_frame]
    mov [rsp + FRAME_RAX], rbx
    jmp trap_return

from_process:                           # `run` returns the vector; the process's state goes into its context
    mov rax, cr2
    mov rdx, [manager_root]
    mov cr3, rdx
    mov rdi, [current]
    fxsave64 [rdi + CONTEXT_FX]
    fxrstor64 [manager_fx]
    mov [rdi + CONTEXT_CR2], rax
    mov rsi, rsp
    mov ecx, FRAME_WORDS
    rep movsq
    mov qword ptr [current], 0
    mov rax, offset trap_stack_top
    mov [tss + TSS_RSP0], rax
    mov word ptr [tss + TSS_IO_BASE], IO_ALLOWED
    mov rsp, [manager_frame]
    mov [rsp + FRAME_RAX], rbx
    jmp trap_return

call_run:                               # rdi: context, rsi: timer count or 0 to leave the timer alone
    mov [manager_frame], rsp
    test rsi, rsi
    jz 2f
    mov ecx, MSR_X2APIC_COUNT
    mov eax, esi
    xor edx, edx
    wrmsr
2:  mov [current], rdi
    fxrstor64 [rdi + CONTEXT_FX]
    mov rax, [rdi + CONTEXT_CR3]
    mov rsi, rdi
    mov rsp, offset process_frame
    mov rdi, rsp
    mov ecx, FRAME_WORDS
    rep movsq
    mov rdx, offset process_frame_end
    mov [tss + TSS_RSP0], rdx
    mov word ptr [tss + TSS_IO_BASE], IO_DENIED
    mov cr3, rax
    jmp trap_return

call_idle:                              # rdi: timer count or 0 to leave the timer alone; returns the vector
    mov [manager_frame], rsp
    test rdi, rdi
    jz 2f
    mov ecx, MSR_X2APIC_COUNT
    mov eax, edi
    xor edx, edx
    wrmsr
2:  sti                                 # takes effect after the next instruction: no interrupt is slept through
    hlt
    jmp 2b                              # not reached by interrupts, they leave through from_nucleus

call_set_root:                          # rdi: the manager's page-table root; also forgets all cached translations
    mov [manager_root], rdi
    mov cr3, rdi
    jmp trap_return

call_invalidate:                        # rdi: an address whose translation changed
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
    mov rcx, cr2
    cmp byte ptr [faulted], 0
    jne reset
    mov byte ptr [faulted], 1
    mov rdi, rbx
    mov rsi, [rsp + FRAME_ERROR]
    mov rdx, [rsp + FRAME_RIP]
    mov r8, [rsp + FRAME_RSP]
    push RING3_DATA
    mov rax, offset fault_stack_top - 8
    push rax
    push FLAGS_QUIET
    push RING3_CODE
    mov rax, offset manager_fault_entry
    push rax
    xor ebp, ebp
    iretq
reset:                                  # also a call
    lidt [no_idt]                       # no handler can be found: a triple fault, which resets the machine
    ud2

trap_return:
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16                         # vector and error code
    iretq

.align 16
calls:                                  # the numbers are `Call` in nucleus.rs
    .quad call_run, call_idle, call_set_root, call_invalidate
    .quad call_read_msr, call_write_msr, call_cpuid, call_write_port, reset
.org calls + NR_CALLS*8                 # fails to assemble when there are more

.align 16
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9a000000ffff            # NUCLEUS_CODE
    .quad 0x00cf92000000ffff            # NUCLEUS_DATA
    .quad 0
    .quad 0x00cff2000000ffff            # RING3_DATA
    .quad 0x00affa000000ffff            # RING3_CODE
    .quad 0
gdt_tss:                                # TSS_SELECTOR; the base is filled in at start
    .quad 0x0000890000000000 + (tss_end - tss - 1)
    .quad 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
idt_pointer:
    .word 256*16 - 1
    .quad idt
no_idt:
    .word 0
    .quad 0

.align 16
manager_fx:                             # a fresh x87/SSE state: the manager keeps nothing there across `run`
    .word 0x037f
    .fill 22, 1, 0
    .long 0x1f80
    .fill 484, 1, 0
manager_root:  .quad boot_pml4
manager_frame: .quad 0                  # the manager's registers while a process runs or the CPU idles
current:       .quad 0                  # the running context; 0 while the manager or the nucleus runs
start_info:    .quad 0
faulted:       .byte 0

.align 16
tss:
    .fill TSS_IO_BASE, 1, 0
    .word IO_ALLOWED
    .fill 8192, 1, 0
    .byte 0xff
tss_end:

# The tables the machine starts with: the low 4 GiB mapped to themselves, everything but this page open to ring 3.
# The manager replaces them by its own as soon as it knows what memory there is.
.align 4096
boot_pml4:
    .quad boot_pdpt + 7
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 7, boot_pd + 0x1007, boot_pd + 0x2007, boot_pd + 0x3007
    .fill 508, 8, 0
boot_pd:
.set i, 0
.rept 2048
    .if i == NUCLEUS_BASE
    .quad i + 0x83
    .else
    .quad i + 0x87
    .endif
    .set i, i + 0x200000
.endr

.section .nucleus_bss, "aw", @nobits
.align 4096
idt:  .skip 4096
.skip 4096
trap_stack_top:
.skip 64
process_frame:                          # the stack of traps out of a process: exactly one frame, then it is copied
.skip FRAME_WORDS*8
process_frame_end:
.skip 64
.text
