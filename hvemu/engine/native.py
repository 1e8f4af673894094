"""Raw bindings: the few Unicorn calls on the hot path, without the wrapper's Python around them."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, c_bool, c_int, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

from unicorn.unicorn_py3.unicorn import uclib

from hvemu.engine.layout import differs

library = ctypes.CDLL(uclib._name)  # noqa: SLF001 - a second handle, so that prototypes here stay ours

FETCH = 4  # UC_PROT_EXEC
HOOK_INTR, HOOK_INSN, HOOK_CODE = 1 << 0, 1 << 1, 1 << 2
HOOK_FETCH_PROT, HOOK_INVALID, HOOK_EDGE = 1 << 9, 1 << 14, 1 << 15
INSN_IN, INSN_OUT, INSN_SYSCALL, INSN_SYSENTER = 218, 500, 699, 700
CTL_TLB_FLUSH_WRITE = 11 | 1 << 30
CTL_TB_FLUSH_WRITE = 10 | 1 << 30
CTL_TB_REMOVE_WRITE = 9 | 2 << 26 | 1 << 30

IntrCallback = CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
InsnCallback = CFUNCTYPE(None, c_void_p, c_void_p)
InvalidCallback = CFUNCTYPE(c_bool, c_void_p, c_void_p)
InCallback = CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
OutCallback = CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)
CodeCallback = CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_void_p)
MemoryCallback = CFUNCTYPE(c_bool, c_void_p, c_int, c_uint64, c_int, c_int64, c_void_p)


class Tb(ctypes.Structure):
    """A translation block: linear address, instructions, bytes."""

    pc: int
    icount: int
    size: int
    _fields_ = (("pc", c_uint64), ("icount", c_uint16), ("size", c_uint16))


EdgeCallback = CFUNCTYPE(None, c_void_p, ctypes.POINTER(Tb), ctypes.POINTER(Tb), c_void_p)


def bind(name: str, *argtypes: Any) -> Any:
    """Return the library function *name* with these argument types and an int result."""
    function = library[name]
    function.argtypes, function.restype = argtypes, c_int
    return function


context_alloc = bind("uc_context_alloc", c_void_p, c_void_p)
context_save = bind("uc_context_save", c_void_p, c_void_p)
context_restore = bind("uc_context_restore", c_void_p, c_void_p)
context_reg_read = bind("uc_context_reg_read", c_void_p, c_int, c_void_p)
context_size = bind("uc_context_size", c_void_p)
emu_start = bind("uc_emu_start", c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)
emu_stop = bind("uc_emu_stop", c_void_p)
reg_write = bind("uc_reg_write", c_void_p, c_int, c_void_p)
vmem_read = bind("uc_vmem_read", c_void_p, c_uint64, c_uint32, c_void_p, c_size_t)
vmem_translate = bind("uc_vmem_translate", c_void_p, c_uint64, c_uint32, c_void_p)
hook_del = bind("uc_hook_del", c_void_p, c_size_t)
_hook_add = bind("uc_hook_add", c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_uint64, c_uint64)
_ctl = bind("uc_ctl", c_void_p, c_int)


def hook_add(handle: int, kind: int, callback: object, *extra: int, begin: int = 1, end: int = 0) -> int:
    """Install *callback* for the addresses from *begin* to *end* inclusive (all, if begin > end); return the hook.

    The caller keeps *callback* alive. *extra* is the instruction of an instruction hook.
    """
    hook = c_size_t()
    code = ctypes.cast(callback, c_void_p)  # type: ignore[arg-type]
    more = tuple(c_int(e) for e in extra)
    if _hook_add(handle, ctypes.byref(hook), kind, code, None, begin, end, *more):
        raise differs(f"hook {kind:#x}")
    return hook.value


def flush_tlb(handle: int) -> None:
    """Forget cached translations of addresses."""
    _ctl(handle, CTL_TLB_FLUSH_WRITE)


def flush_blocks(handle: int) -> None:
    """Forget all translated blocks."""
    _ctl(handle, CTL_TB_FLUSH_WRITE)


def remove_blocks(handle: int, begin: int, end: int) -> None:
    """Forget the blocks that touch the linear addresses from *begin* to before *end*, which are one page at most.

    Besides, the page enters the TLB if the processor can fetch from it now; if it cannot, nothing happens.
    """
    _ctl(handle, CTL_TB_REMOVE_WRITE, c_uint64(begin), c_uint64(end))
