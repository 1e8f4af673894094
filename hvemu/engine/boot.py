"""Once per engine: prove the layout, then enter the mode in which everything sensitive stops."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable

import unicorn
from unicorn import Uc
from unicorn import x86_const as ux

from hvemu.engine import native
from hvemu.engine.layout import CONTEXT_SIZE, MSR_SLOTS, STATE_OFFSET, VERIFIED, RawState, differs
from hvemu.errors import EngineError
from hvemu.x86.registers import Gpr

HIDDEN = 1 << 36
"""Physical address of the engine's own memory, far above any guest RAM."""
HIDDEN_SIZE = 8 << 20
VMCB, MSR_BITMAP, TABLES = 0, 0x2000, 0x1_0000
_BITMAP_SIZE = 0x2000
FAULT_ADDRESS = VMCB + 0x80
"""Where in hidden memory the emulator leaves the address of a page fault or second-level fault."""
_CODE = 0x8000  # a page of hidden memory that holds the one VMRUN, and the guest's HLT and MOV DS
_GUEST_CODE = _CODE + 16
_PAGE_TABLES = 0xA000
_SVME_EFER, _SVME_HFLAG = 1 << 12, 1 << 20
_PAE_LMA = 3
_SENTINEL_COUNT = 0x5AFE_C0DE
_STRUCT_SEARCH = 0x2000  # bytes of Unicorn's own structure
_HLT_EXIT, _GP_EXIT = 0x178, 0x14D
_BAD_SELECTOR = 0x1234

# AMD64 APM 2, "Layout of VMCB": offset, format, value.
_CONTROL = (
    (0x008, "I", 0xFFFF_FFFF),  # every exception
    (0x00C, "Q", 1 << (0x78 - 0x60)),  # HLT: the guest's first instruction
    (0x040, "Q", HIDDEN + 0x4000),
    (0x048, "Q", HIDDEN + MSR_BITMAP),
    (0x058, "I", 1),
    (0x060, "I", 1 << 8 | 15 << 16 | 1 << 20 | 1 << 24),  # an interrupt that is pending for ever: the window; own CR8
    (0x090, "Q", 1),  # nested paging
)
_SAVE = (
    (0x4D0, "Q", 0x1500),  # EFER: SVME, LMA, LME
    (0x548, "Q", 0x20),  # CR4: PAE
    (0x550, "Q", HIDDEN + _PAGE_TABLES),
    (0x558, "Q", 0x8000_0031),  # CR0: PG, NE, ET, PE
    (0x560, "Q", 0x400),
    (0x568, "Q", 0xFFFF_0FF0),
    (0x570, "Q", 2),
)
_SEGMENTS = (  # ES CS SS DS FS GS GDTR LDTR IDTR TR: selector, attributes, limit
    (0x10, 0xC93, 0xFFFF_FFFF), (0x08, 0xA9B, 0xFFFF_FFFF), (0x10, 0xC93, 0xFFFF_FFFF), (0x10, 0xC93, 0xFFFF_FFFF),
    (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0x82, 0xFFFF), (0, 0, 0xFFFF), (0, 0x8B, 0xFFFF),
)  # fmt: skip


def require_version() -> None:
    """Raise EngineError unless the installed Unicorn is the one whose layout is declared here."""
    if unicorn.__version__ != VERIFIED:
        raise EngineError(f"unicorn {unicorn.__version__} is installed, hvemu needs: pip install unicorn=={VERIFIED}")


def verify(uc: Uc, context: int) -> None:
    """Write sentinels through the public API and find each in its declared place. Raises EngineError."""
    if native.context_size(uc._uch) != CONTEXT_SIZE:  # noqa: SLF001 - the raw handle
        raise differs("the end of the state")
    state = RawState.from_address(context + STATE_OFFSET)
    native.context_save(uc._uch, context)  # noqa: SLF001 - the raw handle
    fresh = ctypes.string_at(ctypes.addressof(state), ctypes.sizeof(state))
    gprs = [getattr(ux, f"UC_X86_REG_{gpr.name}") for gpr in Gpr]
    for n, register in enumerate(gprs):
        uc.reg_write(register, 0x5EED_0000_0000_0100 + n)
    uc.reg_write(ux.UC_X86_REG_RIP, 0x5EED_1234)
    uc.reg_write(ux.UC_X86_REG_CR2, 0x5EED_5678)
    uc.reg_write(ux.UC_X86_REG_GDTR, (0, 0x5EED_9ABC, 0x123, 0))
    uc.reg_write(ux.UC_X86_REG_IDTR, (0, 0x5EED_DEF0, 0x456, 0))
    uc.reg_write(ux.UC_X86_REG_DR7, 0x5EED_0400)
    uc.msr_write(0xC000_0101, 0x5EED_0001)
    for n, index in enumerate(MSR_SLOTS):
        uc.msr_write(index, _msr_sentinel(n))
    native.context_save(uc._uch, context)  # noqa: SLF001 - the raw handle
    facts = (
        ("RAX..R15", list(state.regs), [0x5EED_0000_0000_0100 + n for n in range(16)]),
        ("RIP", state.rip, 0x5EED_1234),
        ("CR2", state.cr[2], 0x5EED_5678),
        ("GDTR", (state.raw_gdt.base, state.raw_gdt.limit), (0x5EED_9ABC, 0x123)),
        ("IDTR", (state.raw_idt.base, state.raw_idt.limit), (0x5EED_DEF0, 0x456)),
        ("DR7", state.raw_dr[7], 0x5EED_0400),
        ("GS.base", state.segs[5].base, 0x5EED_0001),
        ("CR0", state.cr[0], uc.reg_read(ux.UC_X86_REG_CR0)),
        ("EFER", state.raw_efer, uc.msr_read(0xC000_0080)),
    )
    for what, found, expected in facts:
        if found != expected:
            raise differs(what)
    for n, (index, offset) in enumerate(MSR_SLOTS.items()):
        if ctypes.c_uint64.from_address(context + offset).value != _msr_sentinel(n):
            raise differs(f"MSR {index:#x}")
    ctypes.memmove(ctypes.addressof(state), fresh, len(fresh))
    native.context_restore(uc._uch, context)  # noqa: SLF001


def _msr_sentinel(n: int) -> int:
    return 0x0607_0406_0706_0400 + n if n == len(MSR_SLOTS) - 1 else 0x5E00 + n  # PAT accepts memory types only


def enter_guest_mode(
    uc: Uc, state: RawState, sync: Callable[[], None], hidden: mmap.mmap, root: int, start: Callable[[int], int | None]
) -> None:
    """Execute one VMRUN of a HLT and stay in guest mode; *start* runs from a RIP and returns the exit code.

    Raises EngineError when the exits of the HLT and of a bad selector are not what they should be.
    """
    for offset, kind, value in (*_CONTROL, *_SAVE, (0x0B0, "Q", root), (0x578, "Q", HIDDEN + _GUEST_CODE)):
        struct.pack_into("<" + kind, hidden, VMCB + offset, value)
    for n, (selector, attributes, limit) in enumerate(_SEGMENTS):
        struct.pack_into("<HHIQ", hidden, VMCB + 0x400 + 16 * n, selector, attributes, limit, 0)
    hidden[MSR_BITMAP : MSR_BITMAP + _BITMAP_SIZE] = b"\xff" * _BITMAP_SIZE
    hidden[_CODE : _CODE + 3], hidden[_GUEST_CODE : _GUEST_CODE + 3] = b"\x0f\x01\xd8", b"\xf4\x8e\xd8"
    _identity(hidden)
    uc.reg_write(ux.UC_X86_REG_CR4, 0x20)
    native.context_save(uc._uch, ctypes.addressof(state) - STATE_OFFSET)  # noqa: SLF001
    state.raw_efer |= _SVME_EFER
    state.hflags |= _SVME_HFLAG
    state.regs[0] = HIDDEN + VMCB
    sync()
    if start(HIDDEN + _CODE) != _HLT_EXIT:
        raise differs("the intercept mechanism")
    intended = (state.vm_vmcb, state.nested_cr3, state.nested_pg_mode, state.intercept_exceptions)
    if intended != (HIDDEN + VMCB, root, _PAE_LMA, 0xFFFF_FFFF):
        raise differs("the intercept words")
    state.regs[0] = _BAD_SELECTOR
    sync()
    if start(HIDDEN + _GUEST_CODE + 1) != _GP_EXIT or state.error_code != _BAD_SELECTOR:
        raise differs("the error code")
    state.rip = HIDDEN + _GUEST_CODE
    state.hflags &= ~_SVME_HFLAG  # from here on SVM instructions are #UD in the guest
    state.raw_efer &= ~_SVME_EFER


def _identity(hidden: mmap.mmap) -> None:
    """Map the hidden code page at its own address, for the guest's one HLT."""
    pml4, pdpt = _PAGE_TABLES, _PAGE_TABLES + 0x1000
    struct.pack_into("<Q", hidden, pml4, (HIDDEN + pdpt) | 7)
    struct.pack_into("<Q", hidden, pdpt + 8 * (HIDDEN >> 30 & 0x1FF), HIDDEN | 0x87)


def find_counter(handle: int, rip: int) -> tuple[ctypes.c_size_t, ctypes.c_size_t]:
    """Return the live count of executed instructions, and the limit behind it, which a sentinel marks.

    Runs from *rip*, where the first instruction must stop. Raises EngineError.
    """
    native.emu_start(handle, rip, 0, 0, _SENTINEL_COUNT)
    for offset in range(8, _STRUCT_SEARCH, 8):
        if ctypes.c_size_t.from_address(handle + offset).value == _SENTINEL_COUNT:
            return ctypes.c_size_t.from_address(handle + offset - 8), ctypes.c_size_t.from_address(handle + offset)
    raise differs("the instruction counter")
