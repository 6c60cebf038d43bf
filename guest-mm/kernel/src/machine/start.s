# The nucleus's second file: how a CPU gets from where it starts to the manager at ring 3, and the tables for it.
#
# The first CPU starts at the PVH entry point (32-bit, paging off, ebx = hvm_start_info). The others start in real mode
# at a page below 1 MiB of the manager's choice (apic.rs), to which it has copied `start_cpu`. Both go the same way from
# `enter` on, with esi = number of the CPU and ebp = its stacks, and each ends in `manager_main` on its own stack.

.section .note.pvh, "a", @note
.align 4
.long 4, 4, 18                          # sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long pvh_start

.section .rodata.start_cpu, "a", @progbits
.code16
.global start_cpu
start_cpu:                              # cs is the page's address / 16, ip is 0
    cli
    mov ax, cs
    mov ds, ax
    mov esi, dword ptr ds:[0x30]
    mov ebp, dword ptr ds:[0x34]
    lgdt ds:[0x38]
    mov eax, cr0
    or al, 1                            # PE
    mov cr0, eax
    .byte 0x66, 0xea                    # far jump: the assembler has no Intel spelling for it here, nor below
    .long enter
    .word NUCLEUS_CODE_32
.org start_cpu + 0x30
    .long 0, 0                          # number and stacks, by the manager
    .word gdt_pointer - gdt - 1
    .long gdt
.org start_cpu + 0x40                   # as much as is copied

.section .nucleus, "awx", @progbits
.code32
.global pvh_start
pvh_start:
    cli
    lgdt [gdt_pointer]
    xor esi, esi
    mov ebp, offset boot_stacks
enter:
    cld
    mov eax, NUCLEUS_DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, cr4
    or eax, 0x620                       # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, [manager_root]
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, 0x900                       # long mode, no-execute
    wrmsr
    mov eax, 0x80010033                 # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    .byte 0xea
    .long long_mode
    .word NUCLEUS_CODE

.code64
long_mode:
    mov edi, esi                        # the manager's arguments: number of the CPU, start information
    mov esi, ebx
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov ebx, edi
    shl ebx, 4
    add ebx, TSS_SELECTOR
    ltr bx
    imul ebx, edi, AREA_SIZE
    add ebx, AREAS
    lea rsp, [rbx + AREA_SIZE]
    mov [rbx + TSS_RSP0], rsp
    mov word ptr [rbx + TSS_IO_BASE], IO_ALLOWED
    mov eax, ebp
    mov [rbx + STACKS], rax
    lidt [idt_pointer]
    fxrstor64 [manager_fx]
    add rax, MANAGER_STACK_END - 8
    mov rbx, offset manager_main
    jmp enter_manager

.align 16
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff            # NUCLEUS_CODE_32: before long mode
    .quad 0x00af9a000000ffff            # NUCLEUS_CODE
    .quad 0x00cf92000000ffff            # NUCLEUS_DATA
    .quad 0
    .quad 0x00cff2000000ffff            # RING3_DATA
    .quad 0x00affa000000ffff            # RING3_CODE
    .quad 0
.set area, AREAS                        # TSS_SELECTOR and what follows; the areas are below 16 MiB
.rept MAX_CPUS
    .quad TSS_LIMIT + (area << 16) + 0x890000000000, 0
    .set area, area + AREA_SIZE
.endr
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
idt:                                    # interrupt gates; ring 3 may use int3 and nothing else
.set i, 0
.rept 256
    .if i == VECTOR_CALL
    .set gate, 0xee00
    .else
    .set gate, 0x8e00
    .endif
    .word (NUCLEUS_BASE + i*16) & 0xffff, NUCLEUS_CODE, gate, (NUCLEUS_BASE + i*16) >> 16
    .quad 0
    .set i, i + 1
.endr

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

.section .nucleus_areas, "aw", @nobits
.skip MAX_CPUS*AREA_SIZE
.text
