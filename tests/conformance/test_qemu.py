"""Guests against QEMU, an oracle that nobody here wrote: the same image, the same console.

Also kernels that were made by other tools: GCC and NASM, where they are installed.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from hvemu.guest.image import load
from hvemu.guest.manifest import load_manifest
from hvemu.machine import Machine, technique_for
from hvemu.techniques.vm import Budget

QEMU, GCC, NASM = shutil.which("qemu-system-i386"), shutil.which("gcc"), shutil.which("nasm")
GUESTS = [guest for guest in load_manifest().values() if guest.mode == 32]
PAIRS = [("bare", "none"), ("deprivilege", "shadow"), ("hardware", "ept")]

C_KERNEL = """
__attribute__((section(".multiboot"), used)) static const unsigned header[] = {0x1BADB002, 0, 0u - 0x1BADB002};
static unsigned char stack[4096];
static void out(unsigned short port, unsigned char byte) { __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"(port)); }
static void print(const char *text) { while (*text) out(0xe9, *text++); }
static unsigned factorial(unsigned n) { return n < 2 ? 1 : n * factorial(n - 1); }
__attribute__((used)) static void kernel(unsigned magic, const unsigned *info) {
    print(magic == 0x2BADB002 ? "magic " : "no magic ");
    print(info[0] & 1 && info[2] > 1024 ? "memory " : "no memory ");
    print(factorial(10) == 3628800 ? "10! = 3628800\\n" : "wrong\\n");
    __asm__ volatile("outl %0, $0xf4" : : "a"(0));
}
__attribute__((naked)) void _start(void) {
    __asm__("mov %0, %%esp\\n push %%ebx\\n push %%eax\\n call kernel\\n cli\\n hlt" : : "i"(stack + sizeof stack));
}
"""
C_CONSOLE = b"magic memory 10! = 3628800\n"
LINKER = (
    "ENTRY(_start) SECTIONS { . = 0x200000; .text : { *(.multiboot) *(.text*) } .data : { *(.rodata* .data* .bss*) } }"
)
NASM_KERNEL = """
bits 32
section .text
align 4
    dd 0x1BADB002, 0, -0x1BADB002
global _start
_start:
    mov esi, text
    mov edx, 0xe9
    mov ecx, length
    rep outsb
    xor eax, eax
    out 0xf4, eax
text: db "hello from nasm", 10
length equ $ - text
"""


def run(image, pair):
    return Machine(image, technique_for(*pair)).run(Budget(max_instructions=10_000_000))


def ask_qemu(kernel, shown):
    """Return (what QEMU's serial port got, exit value) of a Multiboot kernel."""
    command = [
        QEMU,
        "-accel",
        "tcg",
        "-kernel",
        kernel,
        "-m",
        "64",
        "-display",
        "none",
        "-monitor",
        "none",
        "-no-reboot",
    ]
    command += ["-serial", f"file:{shown}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    status = subprocess.run(command, check=False, timeout=120).returncode
    return shown.read_bytes(), status >> 1


@pytest.mark.soak
@pytest.mark.skipif(QEMU is None, reason="qemu-system-i386 is not installed: nothing was compared with QEMU")
@pytest.mark.parametrize("guest", GUESTS, ids=lambda g: g.name)
def test_qemu_shows_the_same_console(guest, tmp_path):
    image = load(guest.name)
    kernel = tmp_path / "kernel"
    kernel.write_bytes(image.segments[0][1])
    theirs = ask_qemu(kernel, tmp_path / "shown")
    ours = run(image, ("bare", "none"))
    assert (ours.console, ours.ending.code) == theirs


@pytest.mark.soak
@pytest.mark.skipif(GCC is None, reason="gcc is not installed")
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_kernel_from_gcc_runs(pair, tmp_path):
    (tmp_path / "kernel.c").write_text(C_KERNEL)
    (tmp_path / "kernel.ld").write_text(LINKER)
    flags = ["-m32", "-Os", "-ffreestanding", "-fno-pic", "-no-pie", "-nostdlib", "-fno-stack-protector", "-static"]
    subprocess.run([GCC, *flags, "-T", "kernel.ld", "kernel.c", "-o", "kernel.elf"], cwd=tmp_path, check=True)
    result = run(load(str(tmp_path / "kernel.elf")), pair)
    assert (result.ending.code, result.console) == (0, C_CONSOLE)


@pytest.mark.soak
@pytest.mark.skipif(NASM is None or GCC is None, reason="nasm and a linker are not installed")
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_kernel_from_nasm_runs(pair, tmp_path):
    (tmp_path / "kernel.asm").write_text(NASM_KERNEL)
    subprocess.run([NASM, "-f", "elf32", "kernel.asm", "-o", "kernel.o"], cwd=tmp_path, check=True)
    linked = ["ld", "-m", "elf_i386", "-Ttext", "0x100000", "kernel.o", "-o", "kernel.elf"]
    subprocess.run(linked, cwd=tmp_path, check=True)
    result = run(load(str(tmp_path / "kernel.elf")), pair)
    assert (result.ending.code, result.console) == (0, b"hello from nasm\n")
