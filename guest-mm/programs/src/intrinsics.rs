//! The functions that compiled Rust code calls without naming them: copies, fills and comparisons of memory, and
//! the two symbols of an unwinder that never runs (the image is built with `panic = "abort"`, but the prebuilt
//! `core` refers to them).
//!
//! Assembly, so that the compiler cannot recognise a loop and turn it into a call of the very function it is in.

#![expect(unsafe_code, reason = "implements the memory functions of the C ABI")]

use core::arch::global_asm;

global_asm!(
    ".pushsection .text.intrinsics, \"ax\", @progbits",
    ".global memcpy, memmove, memset, memcmp, bcmp, strlen",
    // (rdi destination, rsi source, rdx bytes) -> rax destination
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "cmp rdx, 256",
    "jae 2f",
    "shr rcx, 3",
    "rep movsq",
    "mov ecx, edx",
    "and ecx, 7",
    "2: rep movsb",
    "ret",
    // The same, but the areas may overlap: downwards when the destination starts inside the source.
    "memmove:",
    "mov rcx, rdi",
    "sub rcx, rsi",
    "cmp rcx, rdx",
    "jae memcpy",
    "mov rax, rdi",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    // (rdi destination, esi byte, rdx bytes) -> rax destination
    "memset:",
    "mov r8, rdi",
    "movzx eax, sil",
    "mov rcx, 0x0101010101010101",
    "imul rax, rcx",
    "mov rcx, rdx",
    "shr rcx, 3",
    "rep stosq",
    "mov ecx, edx",
    "and ecx, 7",
    "rep stosb",
    "mov rax, r8",
    "ret",
    // (rdi, rsi, rdx bytes) -> eax: below, equal to or above 0 as the first different byte is
    "memcmp:",
    "bcmp:",
    "cmp rdx, 8",
    "jb 4f",
    "3: mov rax, [rdi]",
    "cmp rax, [rsi]",
    "jne 4f",
    "add rdi, 8",
    "add rsi, 8",
    "sub rdx, 8",
    "cmp rdx, 8",
    "jae 3b",
    "4: test rdx, rdx",
    "jz 6f",
    "5: movzx eax, byte ptr [rdi]",
    "movzx ecx, byte ptr [rsi]",
    "sub eax, ecx",
    "jne 7f",
    "inc rdi",
    "inc rsi",
    "dec rdx",
    "jnz 5b",
    "6: xor eax, eax",
    "7: ret",
    // (rdi string) -> rax bytes before the zero
    "strlen:",
    "xor eax, eax",
    "8: cmp byte ptr [rdi + rax], 0",
    "je 9f",
    "inc rax",
    "jmp 8b",
    "9: ret",
    ".popsection",
);

/// Names the language's unwinding hook. Nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Would go on unwinding. Nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding in an image that aborts");
}
