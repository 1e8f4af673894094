"""Where Unicorn keeps the processor's registers, and the proof that they are there.

A context (``uc_context_save``) is a copy of the emulator's whole CPU structure, taken in a microsecond; one
register read through the public API takes longer. Reading the copy needs its layout, which no header promises.
So the layout is declared here and verified on every start: sentinels go in through the public API and must come
out of the declared fields.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64

from hvemu.errors import EngineError

VERIFIED = "2.1.4"
"""The release of Unicorn that has this layout."""
CONTEXT_SIZE = 5608
"""Bytes of a whole context."""
STATE_OFFSET = 40
"""Bytes from the start of a context to the CPU structure."""
SECOND_PART = 5424
"""Bytes from the start of a context to the exception and intercept words."""


class RawSegment(ctypes.Structure):
    """A segment register as the emulator keeps it; *flags* is the descriptor's second doubleword."""

    selector: int
    base: int
    limit: int
    flags: int
    _fields_ = (("selector", c_uint32), ("base", c_uint64), ("limit", c_uint32), ("flags", c_uint32))


MSR_SLOTS: dict[int, int] = {
    0x174: 4840,  # IA32_SYSENTER_CS
    0x175: 4848,  # IA32_SYSENTER_ESP
    0x176: 4856,  # IA32_SYSENTER_EIP
    0xC000_0081: 4864,  # IA32_STAR
    0xC000_0082: 4880,  # IA32_LSTAR
    0xC000_0083: 4888,  # IA32_CSTAR
    0xC000_0084: 4896,  # IA32_FMASK
    0xC000_0102: 4904,  # IA32_KERNEL_GS_BASE
    0xC000_0103: 4936,  # IA32_TSC_AUX
    0x277: 5320,  # IA32_PAT
}
"""MSRs that the emulator itself consults: index to context offset (8 bytes each)."""


def _gap(name: str, start: int, end: int) -> tuple[str, type[ctypes.Array[c_uint8]]]:
    return name, c_uint8 * (end - start)


class RawState(ctypes.Structure):
    """The emulator's CPU structure, from its first register on. Offsets are checked by `verify`."""

    regs: ctypes.Array[c_uint64]
    rip: int
    eflags: int
    cc_dst: int
    cc_src: int
    cc_src2: int
    cc_op: int
    df: int
    hflags: int
    hflags2: int
    segs: ctypes.Array[RawSegment]
    raw_ldt: RawSegment
    raw_tr: RawSegment
    raw_gdt: RawSegment
    raw_idt: RawSegment
    cr: ctypes.Array[c_uint64]
    a20_mask: int
    raw_efer: int
    error_code: int
    exception_is_int: int
    exception_next_rip: int
    raw_dr: ctypes.Array[c_uint64]
    breakpoints: ctypes.Array[c_uint64]
    old_exception: int
    vm_vmcb: int
    tsc_offset: int
    intercept: int
    intercept_cr_read: int
    intercept_cr_write: int
    intercept_dr_read: int
    intercept_dr_write: int
    intercept_exceptions: int
    nested_cr3: int
    nested_pg_mode: int
    v_tpr: int
    _fields_ = (
        ("regs", c_uint64 * 16),
        ("rip", c_uint64),
        ("eflags", c_uint64),
        ("cc_dst", c_uint64),
        ("cc_src", c_uint64),
        ("cc_src2", c_uint64),
        ("cc_op", c_uint32),
        ("df", c_int32),
        ("hflags", c_uint32),
        ("hflags2", c_uint32),
        ("segs", RawSegment * 6),
        ("raw_ldt", RawSegment),
        ("raw_tr", RawSegment),
        ("raw_gdt", RawSegment),
        ("raw_idt", RawSegment),
        ("cr", c_uint64 * 9),
        ("a20_mask", c_int32),
        _gap("_bounds", 540, 632),
        ("raw_efer", c_uint64),
        _gap("_middle", 640, SECOND_PART),
        ("error_code", c_int32),
        ("exception_is_int", c_int32),
        ("exception_next_rip", c_uint64),
        ("raw_dr", c_uint64 * 8),
        ("breakpoints", c_uint64 * 4),  # pointers: they belong to one engine and one moment
        ("old_exception", c_int32),
        ("vm_vmcb", c_uint64),
        ("tsc_offset", c_uint64),
        ("intercept", c_uint64),
        ("intercept_cr_read", c_uint16),
        ("intercept_cr_write", c_uint16),
        ("intercept_dr_read", c_uint16),
        ("intercept_dr_write", c_uint16),
        ("intercept_exceptions", c_uint32),
        ("nested_cr3", c_uint64),
        ("nested_pg_mode", c_uint32),
        ("v_tpr", c_uint8),
    )


def differs(what: str) -> EngineError:
    """Return the error for a Unicorn whose CPU structure is not the verified one."""
    return EngineError(
        f"unicorn: {what} is not where hvemu expects it; install the pinned release: pip install unicorn=={VERIFIED}"
    )
