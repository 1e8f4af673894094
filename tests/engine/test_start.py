"""An engine starts, or says in one line why it cannot."""

from __future__ import annotations

import ctypes
import gc
import weakref

import pytest
import unicorn

import hvemu.engine.boot as boot_module
import hvemu.engine.engine as engine_module
from hvemu.engine.engine import Engine
from hvemu.engine.layout import MSR_SLOTS, RawState
from hvemu.engine.traps import Kind
from hvemu.errors import EngineError
from tests.engine.rig import Rig, rig

HLT, IN_AL_DX = b"\xf4", b"\xec"


@pytest.mark.parametrize("version", ["2.1.3", "2.1.5", "3.0.0"])
def test_another_unicorn_is_refused_in_one_line_that_names_both_versions(monkeypatch, version):
    monkeypatch.setattr(unicorn, "__version__", version)
    with pytest.raises(EngineError) as refused:
        Engine(1 << 20)
    assert str(refused.value) == f"unicorn {version} is installed, hvemu needs: pip install unicorn==2.1.4"


class Shifted(ctypes.Structure):
    """RawState as it would be if the flags came before RIP."""

    _fields_ = (
        RawState._fields_[0],
        ("eflags", ctypes.c_uint64),
        ("rip", ctypes.c_uint64),
        *RawState._fields_[3:],
    )


def control(offset: int, value: int) -> tuple[tuple[int, str, int], ...]:
    return tuple((at, kind, value if at == offset else old) for at, kind, old in boot_module._CONTROL)


BROKEN = {
    "the context is longer": {"boot.CONTEXT_SIZE": 5616},
    "the state begins elsewhere": {"boot.STATE_OFFSET": 48, "engine.STATE_OFFSET": 48},
    "RIP and RFLAGS change places": {"boot.RawState": Shifted},
    "LSTAR and CSTAR change places": {
        "boot.MSR_SLOTS": MSR_SLOTS | {0xC000_0082: MSR_SLOTS[0xC000_0083], 0xC000_0083: MSR_SLOTS[0xC000_0082]}
    },
    "PAT lies elsewhere": {"boot.MSR_SLOTS": MSR_SLOTS | {0x277: 5328}},
    "HLT is not intercepted": {"boot._CONTROL": control(0x00C, 0)},
    "exceptions are not intercepted": {"boot._CONTROL": control(0x008, 0x7FFF_FFFF)},
    "there is no nested paging": {"boot._CONTROL": control(0x090, 0)},
    "the error code is another one": {"boot._BAD_SELECTOR": 0x1235},
    "the instruction counter is not found": {"boot._STRUCT_SEARCH": 64},
}
MODULES = {"boot": boot_module, "engine": engine_module}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_another_layout_is_refused_in_one_line_that_says_what_to_install(monkeypatch, changes):
    for name, value in changes.items():
        module, attribute = name.split(".")
        monkeypatch.setattr(MODULES[module], attribute, value)
    with pytest.raises(EngineError) as refused:
        Engine(1 << 20)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("unicorn: ")
    assert "pip install unicorn==2.1.4" in str(refused.value)


@pytest.mark.parametrize("counted", [True, False])
def test_the_first_block_of_an_engine_is_scanned_for_port_io_as_all_others(counted):
    first = Rig(counted=counted).reset(32, 0)
    assert first.run(b"\x90" + IN_AL_DX + b"\x40\xf4").kind is Kind.IO
    assert first.offset == 1


def test_nothing_of_the_start_is_left_in_reach_of_the_guest():
    r = rig(64)
    assert r.engine.second_level.lookup(boot_module.HIDDEN) is None
    r.word(0x8_1000 + 8 * (boot_module.HIDDEN >> 30 & 0x1FF), boot_module.HIDDEN | 0x87)  # PDPT: the hidden GiB
    stop = r.run(b"\x48\xa1" + boot_module.HIDDEN.to_bytes(8, "little"))  # mov rax, [HIDDEN]
    assert (stop.kind, stop.address) == (Kind.SECOND_LEVEL, boot_module.HIDDEN)


def test_an_engine_is_freed_when_nobody_uses_it():
    engine = Engine(1 << 20)
    freed = weakref.ref(engine)
    del engine
    gc.collect()
    assert freed() is None


def test_two_engines_do_not_disturb_each_other():
    one, two = Rig().reset(32, 0), Rig().reset(64, 0)
    for r, value in ((one, 1), (two, 2)):
        r.put(b"\xb8" + value.to_bytes(4, "little") + HLT)  # mov eax, value; hlt
        r.state.rip = r.start
    assert one.engine.run(1).kind is two.engine.run(1).kind is Kind.LIMIT
    assert one.engine.run(9).kind is two.engine.run(9).kind is Kind.HLT
    assert (one.state.gpr(0), two.state.gpr(0)) == (1, 2)
