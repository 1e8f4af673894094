from __future__ import annotations

import itertools

import pytest

from hvemu.cpu.deliver import Event, Source, deliver, deliver_or_escalate
from hvemu.x86.registers import Gpr, Sreg
from hvemu.x86.segments import Gate
from hvemu.x86.state import TableRegister
from hvemu.x86.vectors import Fault, TripleFault, Vector
from tests.cpu.machines import (
    CODE16,
    CODE32,
    CODE64,
    CONFORMING32,
    DATA16,
    DATA32,
    GDT,
    IDT,
    TSS,
    Machine,
    dpl,
    long,
    protected,
    vm86,
)

VECTOR, HANDLER = 0x40, 0x0012_3456
INT16, TRAP16, INT32, TRAP32, TASK = 6, 7, 14, 15, 5
EXTERNAL = Event(VECTOR, Source.EXTERNAL, None, 0x5555)
INT_N = Event(VECTOR, Source.SOFTWARE_INT, None, 0x5557)
IF, TF, NT, RF, VM, AC = 0x200, 0x100, 0x4000, 0x10000, 0x20000, 0x40000


def gate(m: Machine, vector: int, selector: int, offset: int = HANDLER, kind: int = INT32, **bits: int) -> None:
    """Write a 32-bit or 16-bit gate: the dwords of SDM 3A "IDT Descriptors"."""
    level, present = bits.get("dpl", 0), bits.get("p", 1)
    low = selector << 16 | offset & 0xFFFF
    high = offset & 0xFFFF0000 | present << 15 | level << 13 | kind << 8
    m.memory.poke(IDT + 8 * vector, 8, high << 32 | low)


def gate64(m: Machine, vector: int, selector: int, offset: int = HANDLER, kind: int = INT32, **bits: int) -> None:
    level, present, ist = bits.get("dpl", 0), bits.get("p", 1), bits.get("ist", 0)
    second = offset & 0xFFFF0000 | present << 15 | level << 13 | kind << 8 | ist
    raw = (offset >> 32) << 64 | second << 32 | selector << 16 | offset & 0xFFFF
    m.memory.poke(IDT + 16 * vector, 16, raw)


def faults(m: Machine, event: Event) -> Fault:
    """Deliver *event*, which must fault and leave every register alone; return the fault."""
    before = m.snapshot()
    with pytest.raises(Fault) as raised:
        deliver(m.state, m.memory, event)
    assert m.state == before
    return raised.value


# -- real-address mode ------------------------------------------------------------------------------------------------


def real() -> Machine:
    m = Machine()
    m.state.rip, m.state.rflags, m.sp = 0x1234, 0x40302 | RF, 0x8000
    m.state.set_segment(Sreg.CS, type(m.state.ldtr)(0x0700, 0x7000, 0xFFFF, m.state.segments[0].rights))
    m.state.set_segment(Sreg.SS, type(m.state.ldtr)(0x1000, 0x10000, 0xFFFF, m.state.segments[0].rights))
    m.memory.poke(4 * VECTOR, 4, 0xF000_0100)
    return m


def test_real_mode_pushes_flags_cs_ip_and_clears_if_tf_ac_rf() -> None:
    m = real()
    deliver(m.state, m.memory, Event(VECTOR, Source.SOFTWARE_INT, None, 0x1236))
    assert m.memory.items(0x17FFA, 2, 3) == [0x1236, 0x0700, 0x0302]
    assert (m.sp, m.state.rip, m.state.segments[Sreg.CS].selector) == (0x7FFA, 0x0100, 0xF000)
    assert m.state.segments[Sreg.CS].base == 0xF0000
    assert m.state.rflags == 2


def test_real_mode_pushes_no_error_code() -> None:
    m = real()
    m.memory.poke(4 * Vector.GP, 4, 0x0000_0500)
    deliver(m.state, m.memory, Event.exception(Fault(Vector.GP, 0x58), 0x1234))
    assert m.sp == 0x7FFA


@pytest.mark.parametrize(("limit", "good"), [(4 * VECTOR + 3, True), (4 * VECTOR + 2, False)])
def test_real_mode_ivt_limit(limit: int, good: bool) -> None:
    m = real()
    m.state.idtr = TableRegister(0, limit)
    if good:
        deliver(m.state, m.memory, EXTERNAL)
    else:
        assert faults(m, EXTERNAL).vector == Vector.GP


def test_real_mode_ivt_can_be_moved() -> None:
    m = real()
    m.state.idtr = TableRegister(0x2000, 0x3FF)
    m.memory.poke(0x2000 + 4 * VECTOR, 4, 0x0050_0007)
    deliver(m.state, m.memory, EXTERNAL)
    assert (m.state.segments[Sreg.CS].selector, m.state.rip) == (0x50, 7)


@pytest.mark.parametrize(("sp", "good"), [(0, True), (6, True), (1, False), (3, False), (5, False)])
def test_real_mode_stack_wraps_at_even_zero_only(sp: int, good: bool) -> None:
    m = real()
    m.sp = sp
    if good:
        deliver(m.state, m.memory, EXTERNAL)
        assert m.sp == (sp - 6) % 0x10000
    else:
        assert faults(m, EXTERNAL).vector == Vector.SS


def test_real_mode_keeps_the_upper_half_of_esp() -> None:
    m = real()
    m.sp = 0xABCD_0000
    deliver(m.state, m.memory, EXTERNAL)
    assert m.sp == 0xABCD_FFFA
    assert m.memory.peek(0x1FFFE, 2) == 0x0302


# -- protected mode: who may enter what -------------------------------------------------------------------------------


def expected(case: tuple[int, int, int, int, int, int], software: bool) -> object:
    """Return the fault, or the CPL of the handler: SDM 2A "INT n/INTO/INT3/INT1-Call to Interrupt Procedure"."""
    g_dpl, g_p, cpl, t_dpl, conforming, t_p = case
    ext = 0 if software else 1
    if software and g_dpl < cpl:
        return Fault(Vector.GP, VECTOR * 8 + 2)
    if not g_p:
        return Fault(Vector.NP, VECTOR * 8 + 2 + ext)
    if t_dpl > cpl:
        return Fault(Vector.GP, 0xC0 + ext)
    if not t_p:
        return Fault(Vector.NP, 0xC0 + ext)
    return cpl if conforming else t_dpl


@pytest.mark.parametrize("software", [False, True])
@pytest.mark.parametrize("kind", [INT16, TRAP16, INT32, TRAP32])
def test_gate_privilege_matrix(kind: int, software: bool) -> None:
    event = INT_N if software else EXTERNAL
    levels, flag = range(4), range(2)
    for case in itertools.product(levels, flag, levels, levels, flag, flag):
        g_dpl, g_p, cpl, t_dpl, conforming, t_p = case
        m = protected(cpl)
        code = dpl(CONFORMING32 if conforming else CODE32, t_dpl)
        m.gdt(0xC0, code if t_p else code & ~(1 << 47))
        gate(m, VECTOR, 0xC3, kind=kind, dpl=g_dpl, p=g_p)
        want = expected(case, software)
        if isinstance(want, Fault):
            assert faults(m, event) == want, case
            continue
        deliver(m.state, m.memory, event)
        assert (m.state.cpl, m.state.segments[Sreg.CS].selector) == (want, 0xC0 + want)
        assert m.state.rip == (HANDLER if kind in (INT32, TRAP32) else HANDLER & 0xFFFF)
        assert bool(m.state.rflags & IF) == (kind in (TRAP16, TRAP32))


@pytest.mark.parametrize("kind", sorted({*range(16)} - {TASK, INT16, TRAP16, INT32, TRAP32}))
def test_other_types_in_the_idt_are_gp(kind: int) -> None:
    m = protected()
    gate(m, VECTOR, 8, kind=kind)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, VECTOR * 8 + 3)


def test_a_segment_descriptor_in_the_idt_is_gp() -> None:
    m = protected()
    gate(m, VECTOR, 8, kind=0x1E)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, VECTOR * 8 + 3)


@pytest.mark.parametrize(
    ("source", "error"),
    [(Source.EXTERNAL, 0x203), (Source.NMI, 0x203), (Source.EXCEPTION, 0x203), (Source.PRIVILEGED, 0x203),
     (Source.SOFTWARE_INT, 0x202), (Source.SOFTWARE_EXCEPTION, 0x202)],
)  # fmt: skip
def test_error_code_beyond_the_idt_limit(source: Source, error: int) -> None:
    m = protected()
    m.state.idtr = TableRegister(IDT, VECTOR * 8 + 6)
    assert faults(m, Event(VECTOR, source, None, 0)) == Fault(Vector.GP, error)


@pytest.mark.parametrize("source", [Source.SOFTWARE_EXCEPTION, Source.SOFTWARE_INT])
def test_software_events_need_the_gates_dpl(source: Source) -> None:
    m = protected(3)
    gate(m, 3, 8)
    assert faults(m, Event(3, source, None, 0)) == Fault(Vector.GP, 3 * 8 + 2)


@pytest.mark.parametrize("source", [Source.PRIVILEGED, Source.EXTERNAL, Source.NMI, Source.EXCEPTION])
def test_other_events_do_not(source: Source) -> None:
    m = protected(3)
    gate(m, 1, 8)
    deliver(m.state, m.memory, Event(1, source, None, 0))
    assert m.state.cpl == 0


@pytest.mark.parametrize(
    ("selector", "raw", "error"),
    [
        (0x0000, 0, 0x0001),  # null: no index
        (0x0003, 0, 0x0001),
        (0x1000, 0, 0x1001),  # beyond the GDT limit
        (0x00C4, 0, 0x00C5),  # LDT, and none is loaded
        (0x00C0, DATA32, 0x00C1),  # data
        (0x00C0, 0x0000_8200_0000_0000, 0x00C1),  # a system descriptor
    ],
)
def test_bad_handler_segments_are_gp(selector: int, raw: int, error: int) -> None:
    m = protected()
    m.state.ldtr = type(m.state.tr)(0, 0, 0, m.state.tr.rights.replace(unusable=1))
    m.gdt(0xC0, raw)
    gate(m, VECTOR, selector)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, error)


def test_entry_point_beyond_the_limit_is_gp_with_ext_only() -> None:
    m = protected()
    m.gdt(0xC0, CODE16)
    gate(m, VECTOR, 0xC0, 0x10000)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, 1)
    assert faults(m, INT_N) == Fault(Vector.GP, 0)


# -- protected mode: frames -------------------------------------------------------------------------------------------


def test_same_privilege_frame_is_eip_cs_eflags_and_error_code() -> None:
    m = protected()
    gate(m, Vector.GP, 8)
    deliver(m.state, m.memory, Event.exception(Fault(Vector.GP, 0x58), 0x5555))
    assert m.memory.items(0x18000 - 16, 4, 4) == [0x58, 0x5555, 0x08, 0x246 | RF]
    assert (m.sp, m.state.rflags, m.state.rip) == (0x18000 - 16, 0x046, HANDLER)


def test_inner_frame_is_on_the_stack_of_the_tss() -> None:
    m = protected(3)
    gate(m, VECTOR, 0x08, kind=TRAP32, dpl=3)
    deliver(m.state, m.memory, INT_N)
    assert m.memory.items(0x11000 - 20, 4, 5) == [0x5557, 0x3B, 0x246, 0x18000, 0x43]
    assert (m.sp, m.state.cpl, m.state.rflags) == (0x11000 - 20, 0, 0x246)
    assert m.selectors == [0x43, 0x08, 0x10, 0x43, 0x43, 0x43]


def test_ring_one_uses_its_own_stack() -> None:
    m = protected(3)
    gate(m, VECTOR, 0x18, dpl=3)
    deliver(m.state, m.memory, INT_N)
    assert (m.sp, m.state.cpl, m.selectors[Sreg.SS]) == (0x12000 - 20, 1, 0x21)


def test_a_16_bit_gate_pushes_words() -> None:
    m = protected(3)
    gate(m, Vector.GP, 0x08, kind=INT16)
    m.sp = 0x0001_8000
    deliver(m.state, m.memory, Event.exception(Fault(Vector.GP, 0x58), 0x5555))
    assert m.memory.items(0x11000 - 12, 2, 6) == [0x58, 0x5555, 0x3B, 0x246, 0x8000, 0x43]
    assert (m.sp, m.state.rip) == (0x11000 - 12, HANDLER & 0xFFFF)


def test_pushes_are_supervisor_writes_below_ring_3_and_user_writes_at_ring_3() -> None:
    for level, user in (0, False), (3, True):
        m = protected(level)
        gate(m, VECTOR, 0x08 + 16 * level)
        deliver(m.state, m.memory, EXTERNAL)
        assert {access[2] for access in m.memory.accesses if access[3]} == {user}


@pytest.mark.parametrize(
    ("vector", "code", "rf"),
    [(Vector.UD, None, True), (Vector.PF, 2, True), (Vector.DB, None, False), (Vector.DF, 0, False),
     (Vector.MC, None, False)],
)  # fmt: skip
def test_faults_push_rf(vector: Vector, code: int | None, rf: bool) -> None:
    m = protected()
    gate(m, vector, 8)
    deliver(m.state, m.memory, Event.exception(Fault(vector, code), 0x5555))
    assert bool(m.memory.peek(0x18000 - 4, 4) & RF) == rf
    assert not m.state.rflags & RF


@pytest.mark.parametrize("source", [Source.EXTERNAL, Source.NMI, Source.SOFTWARE_INT, Source.SOFTWARE_EXCEPTION])
def test_interrupts_push_rf_as_it_is_even_on_a_vector_of_a_fault(source: Source) -> None:
    for rf in (0, RF):
        m = protected()
        gate(m, Vector.UD, 8)
        m.state.rflags |= rf
        deliver(m.state, m.memory, Event(Vector.UD, source, None, 0x5555))
        assert m.memory.peek(0x18000 - 4, 4) & RF == rf


def test_tf_nt_rf_are_cleared_and_ac_stays() -> None:
    m = protected()
    gate(m, VECTOR, 8, kind=TRAP32)
    m.state.rflags |= TF | NT | RF | AC
    deliver(m.state, m.memory, EXTERNAL)
    assert m.state.rflags == 0x246 | AC


def test_cr2_is_written_with_a_page_fault() -> None:
    m = protected()
    gate(m, Vector.PF, 8)
    deliver(m.state, m.memory, Event.exception(Fault(Vector.PF, 2, cr2=0xDEAD000), 0x5555))
    assert (m.state.cr2, m.memory.peek(0x18000 - 16, 4)) == (0xDEAD000, 2)


def test_the_mov_ss_shadow_ends() -> None:
    m = protected()
    gate(m, VECTOR, 8)
    m.state.blocking_by_sti_or_mov_ss = True
    deliver(m.state, m.memory, EXTERNAL)
    assert not m.state.blocking_by_sti_or_mov_ss


def test_accessed_bits_of_handler_and_stack_are_set_in_the_table() -> None:
    m = protected(3)
    m.gdt(0x08, CODE32 & ~(1 << 40))
    m.gdt(0x10, DATA32 & ~(1 << 40))
    gate(m, VECTOR, 8)
    deliver(m.state, m.memory, EXTERNAL)
    assert (m.memory.peek(GDT + 8, 8), m.memory.peek(GDT + 0x10, 8)) == (CODE32, DATA32)
    assert m.state.segments[Sreg.CS].rights.type & 1


# -- protected mode: stacks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ss", "raw", "fault"),
    [
        (0x0000, 0, Fault(Vector.TS, 1)),
        (0x1000, 0, Fault(Vector.TS, 0x1001)),
        (0x00C1, DATA32, Fault(Vector.TS, 0x00C1)),  # RPL is not the level
        (0x00C0, dpl(DATA32, 1), Fault(Vector.TS, 0x00C1)),  # DPL is not the level
        (0x00C0, CODE32, Fault(Vector.TS, 0x00C1)),
        (0x00C0, DATA32 & ~(1 << 41), Fault(Vector.TS, 0x00C1)),  # read-only
        (0x00C0, DATA32 & ~(1 << 47), Fault(Vector.SS, 0x00C1)),  # absent
    ],
)
def test_bad_inner_stack_segments(ss: int, raw: int, fault: Fault) -> None:
    m = protected(3)
    m.gdt(0xC0, raw)
    m.memory.poke(TSS + 8, 2, ss)
    gate(m, VECTOR, 8)
    assert faults(m, EXTERNAL) == fault


@pytest.mark.parametrize(("limit", "good"), [(9, True), (8, False)])
def test_tss_limit_must_cover_the_stack_of_the_level(limit: int, good: bool) -> None:
    m = protected(3)
    m.state.tr = type(m.state.tr)(0x98, TSS, limit, m.state.tr.rights)
    gate(m, VECTOR, 8)
    if good:
        deliver(m.state, m.memory, EXTERNAL)
    else:
        assert faults(m, EXTERNAL) == Fault(Vector.TS, 0x99)


@pytest.mark.parametrize(("limit", "good"), [(5, True), (4, False)])
def test_a_16_bit_tss_holds_word_stacks(limit: int, good: bool) -> None:
    m = protected(3)
    m.state.tr = type(m.state.tr)(0x98, TSS, limit, m.state.tr.rights.replace(type=3))
    m.memory.poke(TSS + 2, 4, 0x0010_9000)
    gate(m, VECTOR, 8)
    if good:
        deliver(m.state, m.memory, EXTERNAL)
        assert m.sp == 0x9000 - 20
    else:
        assert faults(m, EXTERNAL) == Fault(Vector.TS, 0x99)


@pytest.mark.parametrize(
    ("error_code", "sp", "good"), [(None, 20, True), (None, 19, False), (0, 24, True), (0, 23, False)]
)
def test_room_on_the_inner_stack(error_code: int | None, sp: int, good: bool) -> None:
    m = protected(3)
    m.gdt(0xC0, 0x0000_9300_0003_0FFF | 1 << 54)  # expand-up, 4 KiB, 32-bit
    m.memory.poke(TSS + 4, 6, 0x00C0 << 32 | sp)
    gate(m, VECTOR, 8)
    event = Event(VECTOR, Source.EXTERNAL, error_code, 0)
    if good:
        deliver(m.state, m.memory, event)
        assert m.sp == 0
    else:
        assert faults(m, event) == Fault(Vector.SS, 0xC1)


def test_room_on_the_current_stack_names_no_selector() -> None:
    m = protected()
    m.gdt(0xC0, 0x0040_9300_8000_0FFF)
    m.load(Sreg.SS, 0xC0)
    m.sp = 8
    gate(m, VECTOR, 8)
    assert faults(m, EXTERNAL) == Fault(Vector.SS, 1)
    assert faults(m, INT_N) == Fault(Vector.SS, 0)


@pytest.mark.parametrize(("sp", "good"), [(0x1000 + 12, True), (0x1000 + 11, False), (0x1000, False), (0, False)])
def test_expand_down_stack(sp: int, good: bool) -> None:
    m = protected()
    m.gdt(0xC0, 0x0040_9700_0000_0FFF)  # valid offsets from 0x1000, 32-bit; 0 wraps to the top of 4 GiB
    m.load(Sreg.SS, 0xC0)
    m.sp = sp
    gate(m, VECTOR, 8)
    if good:
        deliver(m.state, m.memory, EXTERNAL)
        assert m.sp == 0x1000
    elif sp:
        assert faults(m, EXTERNAL) == Fault(Vector.SS, 1)
    else:
        with pytest.raises(AssertionError):  # the top of 4 GiB is legal, and beyond the memory of this machine
            deliver(m.state, m.memory, EXTERNAL)


def test_a_16_bit_stack_segment_moves_sp_only() -> None:
    m = protected()
    m.gdt(0xC0, DATA16 | 2 << 32)  # base 0x20000
    m.load(Sreg.SS, 0xC0)
    m.sp = 0xABCD_0004
    gate(m, VECTOR, 8)
    deliver(m.state, m.memory, EXTERNAL)
    assert m.sp == 0xABCD_FFF8
    assert (m.memory.peek(0x20000, 4), m.memory.items(0x2FFF8, 4, 2)) == (0x246, [0x5555, 8])


def test_page_fault_on_the_stack_leaves_the_registers() -> None:
    m = protected(3)
    m.memory.missing = {0x10}
    gate(m, VECTOR, 8)
    fault = faults(m, EXTERNAL)
    assert (fault.vector, fault.error_code, fault.cr2) == (Vector.PF, 2, 0x11000 - 4)


# -- virtual-8086 mode ------------------------------------------------------------------------------------------------


def test_vm86_frame_holds_the_data_segments_and_nulls_them() -> None:
    m = vm86()
    gate(m, VECTOR, 8, dpl=3)
    deliver(m.state, m.memory, Event(VECTOR, Source.SOFTWARE_INT, None, 0x0102))
    assert m.memory.items(0x11000 - 36, 4, 9) == [
        0x0102, 0x2222, 0x23202, 0xFFF0, 0x3333, 0x1111, 0x4444, 0x5555, 0x6666,
    ]  # fmt: skip
    assert m.selectors == [0, 0x08, 0x10, 0, 0, 0]
    assert (m.sp, m.state.cpl, m.state.rflags) == (0x11000 - 36, 0, 0x3002)
    assert all(m.state.segments[s].rights.unusable for s in (Sreg.ES, Sreg.DS, Sreg.FS, Sreg.GS))


def test_vm86_through_a_16_bit_gate() -> None:
    m = vm86()
    gate(m, Vector.GP, 8, kind=INT16)
    deliver(m.state, m.memory, Event.exception(Fault(Vector.GP, 0), 0x0100))
    assert m.memory.items(0x11000 - 20, 2, 10) == [
        0, 0x0100, 0x2222, 0x3202, 0xFFF0, 0x3333, 0x1111, 0x4444, 0x5555, 0x6666,
    ]  # fmt: skip


@pytest.mark.parametrize("iopl", range(4))
def test_int_n_in_vm86_needs_iopl_3(iopl: int) -> None:
    m = vm86(iopl)
    gate(m, VECTOR, 8, dpl=3)
    if iopl < 3:
        assert faults(m, INT_N) == Fault(Vector.GP, 0)
    else:
        deliver(m.state, m.memory, INT_N)
        assert m.state.cpl == 0


@pytest.mark.parametrize("source", [s for s in Source if s is not Source.SOFTWARE_INT])
def test_nothing_else_in_vm86_looks_at_iopl(source: Source) -> None:
    m = vm86(0)
    gate(m, 3, 8, dpl=3)
    deliver(m.state, m.memory, Event(3, source, None, 0x100))
    assert m.state.cpl == 0


@pytest.mark.parametrize(("level", "conforming"), [(1, 0), (2, 0), (3, 0), (0, 1), (3, 1)])
def test_a_vm86_handler_must_be_nonconforming_ring_0(level: int, conforming: int) -> None:
    m = vm86()
    m.gdt(0xC0, dpl(CONFORMING32 if conforming else CODE32, level))
    gate(m, VECTOR, 0xC0)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, 0xC1)


# -- IA-32e mode ------------------------------------------------------------------------------------------------------


def test_long_mode_frame_always_has_ss_rsp_and_is_aligned() -> None:
    m = long()
    m.sp = 0x18009
    gate64(m, Vector.GP, 8)
    deliver(m.state, m.memory, Event.exception(Fault(Vector.GP, 0x58), 0x5555))
    assert m.memory.items(0x18000 - 48, 8, 6) == [0x58, 0x5555, 0x08, 0x246 | RF, 0x18009, 0x10]
    assert (m.sp, m.selectors[Sreg.SS], m.state.rflags) == (0x18000 - 48, 0x10, 0x46)


def test_long_mode_privilege_change_nulls_ss_with_rpl() -> None:
    for level in (0, 1, 2):
        m = long(3)
        gate64(m, VECTOR, 0x08 + 16 * level, 0xFFFF_8000_0012_3456, kind=TRAP32, dpl=3)
        deliver(m.state, m.memory, INT_N)
        top = 0x11000 + 0x1000 * level
        assert m.memory.items(top - 40, 8, 5) == [0x5557, 0x3B, 0x246, 0x18000, 0x43]
        assert (m.sp, m.state.cpl, m.selectors[Sreg.SS]) == (top - 40, level, level)
        assert m.state.segments[Sreg.SS].rights.unusable
        assert m.state.rip == 0xFFFF_8000_0012_3456


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("ist", range(1, 8))
def test_ist_is_used_with_and_without_privilege_change(ist: int, level: int) -> None:
    m = long(level)
    gate64(m, VECTOR, 8, ist=ist)
    deliver(m.state, m.memory, EXTERNAL)
    assert m.sp == 0x20000 + 0x1000 * ist - 40
    assert m.selectors[Sreg.SS] == (0x10 if level == 0 else 0)


@pytest.mark.parametrize(("ist", "limit", "good"), [(0, 11, True), (0, 10, False), (7, 0x5B, True), (7, 0x5A, False)])
def test_long_mode_tss_limit(ist: int, limit: int, good: bool) -> None:
    m = long(3)
    m.state.tr = type(m.state.tr)(0xA0, TSS, limit, m.state.tr.rights)
    gate64(m, VECTOR, 8, ist=ist)
    if good:
        deliver(m.state, m.memory, EXTERNAL)
    else:
        assert faults(m, EXTERNAL) == Fault(Vector.TS, 0xA1)


@pytest.mark.parametrize("kind", sorted({*range(16)} - {INT32, TRAP32}))
def test_only_64_bit_interrupt_and_trap_gates_exist_in_long_mode(kind: int) -> None:
    m = long()
    gate64(m, VECTOR, 8, kind=kind)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, VECTOR * 8 + 3)


@pytest.mark.parametrize("raw", [CODE32, CODE64 | 1 << 54], ids=["L=0", "L=1 D=1"])
def test_a_long_mode_handler_must_be_64_bit_code(raw: int) -> None:
    m = long()
    m.gdt(0xC0, raw)
    gate64(m, VECTOR, 0xC0)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, 0xC1)


def test_long_mode_idt_limit() -> None:
    m = long()
    m.state.idtr = TableRegister(IDT, VECTOR * 16 + 14)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, VECTOR * 8 + 3)


def test_noncanonical_entry_point_and_stacks() -> None:
    m = long()
    gate64(m, VECTOR, 8, 1 << 47)
    assert faults(m, EXTERNAL) == Fault(Vector.GP, 1)
    gate64(m, VECTOR, 8)
    m.sp = 0xFFFF_8000_0000_0000
    assert faults(m, EXTERNAL) == Fault(Vector.SS, 1)
    m = long(3)
    gate64(m, VECTOR, 8)
    m.memory.poke(TSS + 4, 8, 0x1234_0000_0000_0000)
    assert faults(m, EXTERNAL) == Fault(Vector.SS, 1)


def test_compatibility_mode_enters_64_bit_code() -> None:
    m = long(3)
    m.gdt(0x38, dpl(CODE32, 3))
    m.load(Sreg.CS, 0x3B)
    m.sp = 0xFFFF_F000
    gate64(m, VECTOR, 8)
    deliver(m.state, m.memory, EXTERNAL)
    assert m.memory.items(0x11000 - 40, 8, 5) == [0x5555, 0x3B, 0x246, 0xFFFF_F000, 0x43]
    assert m.state.segments[Sreg.CS].rights.l


# -- escalation -------------------------------------------------------------------------------------------------------


def exception(vector: Vector, code: int | None = None) -> Event:
    return Event.exception(Fault(vector, code), 0x5555)


def test_a_clean_delivery_reports_only_the_exception_itself() -> None:
    m = protected()
    gate(m, Vector.UD, 8)
    gate(m, VECTOR, 8)
    assert deliver_or_escalate(m.state, m.memory, exception(Vector.UD)) == (Fault(Vector.UD),)
    assert deliver_or_escalate(m.state, m.memory, EXTERNAL) == ()


def test_a_fault_while_delivering_an_interrupt_is_delivered_itself() -> None:
    m = protected()
    gate(m, VECTOR, 8, p=0)
    gate(m, Vector.NP, 8)
    chain = deliver_or_escalate(m.state, m.memory, Event(VECTOR, Source.SOFTWARE_INT, None, 0x5557))
    assert chain == (Fault(Vector.NP, VECTOR * 8 + 2),)
    assert m.memory.items(0x18000 - 16, 4, 4) == [VECTOR * 8 + 2, 0x5555, 8, 0x246 | RF]  # points at the INT n


def test_contributory_twice_is_a_double_fault() -> None:
    m = protected()
    gate(m, Vector.GP, 8, p=0)
    gate(m, Vector.DF, 8)
    chain = deliver_or_escalate(m.state, m.memory, exception(Vector.GP, 0))
    assert chain == (Fault(Vector.GP, 0), Fault(Vector.NP, 13 * 8 + 3), Fault(Vector.DF, 0))
    assert m.memory.items(0x18000 - 16, 4, 4) == [0, 0x5555, 8, 0x246]


def test_page_fault_then_page_fault_is_a_double_fault_and_cr2_is_the_second() -> None:
    m = protected(3)
    gate(m, Vector.PF, 0x38)
    gate(m, Vector.DF, 8)
    m.memory.missing = {0x17}
    chain = deliver_or_escalate(m.state, m.memory, Event.exception(Fault(Vector.PF, 4, cr2=0x77000), 0x5555))
    assert [fault.vector for fault in chain] == [Vector.PF, Vector.PF, Vector.DF]
    assert (m.state.cpl, m.sp, m.state.cr2) == (0, 0x11000 - 24, 0x18000 - 4)


def test_triple_fault_carries_the_whole_chain() -> None:
    m = protected()
    m.state.idtr = TableRegister(0, 0)
    with pytest.raises(TripleFault) as raised:
        deliver_or_escalate(m.state, m.memory, exception(Vector.UD))
    assert raised.value.chain == (
        Fault(Vector.UD), Fault(Vector.GP, 6 * 8 + 3), Fault(Vector.GP, 13 * 8 + 3), Fault(Vector.DF, 0),
        Fault(Vector.GP, 8 * 8 + 3),
    )  # fmt: skip


def test_an_empty_ivt_is_a_triple_fault_in_real_mode_too() -> None:
    m = real()
    m.state.idtr = TableRegister(0, 0)
    with pytest.raises(TripleFault):
        deliver_or_escalate(m.state, m.memory, EXTERNAL)


def test_gate_made_from_names_is_the_gate_made_by_hand() -> None:
    m = protected()
    gate(m, VECTOR, 0x18, dpl=3)
    made = Gate.make(0x18, HANDLER, type=14, p=1, dpl=3)
    assert m.memory.peek(IDT + 8 * VECTOR, 8) == made
    assert m.state.gpr(Gpr.RSP) == 0x18000
