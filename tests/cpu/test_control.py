from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from hvemu.cpu import control
from hvemu.cpu.control import Rules, read_cr, read_dr, write_cr, write_dr, write_efer
from hvemu.cpu.msr_file import MsrFile
from hvemu.engine.engine import Engine
from hvemu.engine.traps import Kind, Stop
from hvemu.x86.cpuid import Offer
from hvemu.x86.registers import Sreg
from hvemu.x86.state import AccessRights, PlainState, Segment
from hvemu.x86.vectors import Fault, Vector
from tests.x86 import engines

PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG = (1 << n for n in (0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31))
CR0_DEFINED = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG
PSE, PAE, PGE, UMIP, VMXE, SMEP = (1 << n for n in (4, 5, 7, 11, 13, 20))
SCE, LME, LMA, NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11
GP, UD, DB = Fault(Vector.GP, 0), Fault(Vector.UD), Fault(Vector.DB)
CODE = AccessRights(type=11, s=1, p=1)


def nothing_there(_gpa: int, _size: int) -> int:
    return 0


def machine(*, cr0: int = PE, cr4: int = 0, efer: int = 0, csl: int = 0, tss: int = 11) -> PlainState:
    state = PlainState(cr0=cr0 | ET, cr4=cr4, efer=efer, cr3=0x5000)
    state.set_segment(Sreg.CS, Segment(8, 0, 0xFFFF_FFFF, CODE.replace(l=csl)))
    state.tr = Segment(0x18, 0x6000, 0x67, AccessRights(type=tss, p=1))
    return state


def long64() -> PlainState:
    return machine(cr0=PE | PG, cr4=PAE, efer=LME | LMA, csl=1)


def compatibility() -> PlainState:
    return machine(cr0=PE | PG, cr4=PAE, efer=LME | LMA)


def pae_paging() -> PlainState:
    return machine(cr0=PE | PG, cr4=PAE)


LEGACY: list[Callable[[], PlainState]] = [PlainState, machine, pae_paging, compatibility]
MODES = [*LEGACY, long64]


def fault(action: Callable[[], object]) -> Fault | None:
    try:
        action()
    except Fault as raised:
        return raised
    return None


def registers(state: PlainState) -> tuple[int, ...]:
    return state.cr0, state.cr3, state.cr4, state.cr8, state.efer


# -- CR0 --------------------------------------------------------------------------------------------------------------


def starts() -> Iterator[PlainState]:
    """Every consistent combination of what a write of CR0 depends on."""
    bits = (0, 1)
    for pe, pg, lme, pae, csl, tss in itertools.product(bits, bits, bits, bits, bits, (1, 3, 9, 11)):
        if (pg and not pe) or (pg and lme and not pae):
            continue
        lma = LMA if pg and lme else 0
        yield machine(cr0=PE * pe | PG * pg, cr4=PAE * pae, efer=LME * lme | lma, csl=csl, tss=tss)


def refused(state: PlainState, value: int) -> bool:
    """SDM 2B "MOV-Move to/from Control Registers" and SDM 3A "Initializing IA-32e Mode", clause by clause."""
    long_ = bool(state.efer & LMA)
    csl = bool(state.segment(Sreg.CS).rights.l)
    activates = value & PG and not state.cr0 & PG and state.efer & LME
    return any((
        long_ and csl and value >> 32,
        value & PG and not value & PE,
        value & NW and not value & CD,
        activates and not state.cr4 & PAE,
        activates and csl,
        activates and state.tr.rights.type in (1, 3),
        long_ and csl and not value & PG,
    ))  # fmt: skip


def test_cr0_takes_what_the_manual_lets_it_take_and_nothing_changes_otherwise() -> None:
    parts = (PE, PG, NW, CD, ET, WP | TS | 1 << 6 | 1 << 28, 1 << 32, 1 << 63)
    for start in starts():
        for chosen in itertools.product((False, True), repeat=len(parts)):
            value = sum(itertools.compress(parts, chosen))
            state = replace(start)
            expected = GP if refused(start, value) else None
            assert fault(lambda s=state, v=value: write_cr(s, 0, v, nothing_there)) == expected, (start, hex(value))
            if expected:
                assert state == start
                continue
            lma = LMA if value & PG and start.efer & LME else 0
            assert state.cr0 == value & CR0_DEFINED | ET
            assert state.efer == start.efer & ~LMA | lma
            assert (state.cr3, state.cr4) == (start.cr3, start.cr4)


@pytest.mark.parametrize("number", range(32))
def test_reserved_bits_of_the_lower_half_of_cr0_stay_clear(number: int) -> None:
    state = long64()
    write_cr(state, 0, PE | PG | CD | 1 << number, nothing_there)
    assert state.cr0 == PE | ET | PG | CD | 1 << number & CR0_DEFINED


def test_vmx_operation_fixes_bits_to_one() -> None:
    rules = Rules(Offer(vmx=True), cr0_ones=PE | NE | PG, cr4_ones=VMXE)
    for value in (PE | PG, NE | PE, PE | NE | PG):
        state = long64()
        raised = fault(lambda s=state, v=value: write_cr(s, 0, v, nothing_there, rules))
        assert raised == (None if value == PE | NE | PG else GP)
    assert fault(lambda: write_cr(long64(), 4, PAE, nothing_there, rules)) == GP
    assert fault(lambda: write_cr(long64(), 4, PAE | VMXE, nothing_there, rules)) is None


# -- CR3 and CR8 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(64))
def test_cr3_refuses_address_bits_beyond_maxphyaddr(number: int) -> None:
    state = long64()
    value = 0x9000 | 1 << number
    raised = fault(lambda: write_cr(state, 3, value, nothing_there))
    assert (raised, state.cr3) == ((None, value) if number < 40 else (GP, 0x5000))


@pytest.mark.parametrize("start", LEGACY)
def test_outside_64_bit_mode_32_bits_are_moved(start: Callable[[], PlainState]) -> None:
    state = start()
    write_cr(state, 3, 0xFFFF_FFFF_0000_3018, nothing_there)
    assert state.cr3 == 0x3018
    state.cr3 = 0x12_3456_7000
    assert read_cr(state, 3) == 0x3456_7000
    value = state.cr0 & ~ET
    write_cr(state, 0, 0xFFFF_FFFF_0000_0000 | value, nothing_there)
    assert state.cr0 == value | ET


def test_cr8_holds_four_bits_in_64_bit_mode() -> None:
    for value in (*range(18), *(1 << n for n in range(64))):
        state = long64()
        raised = fault(lambda s=state, v=value: write_cr(s, 8, v, nothing_there))
        assert (raised, state.cr8) == ((None, value) if value < 16 else (GP, 0))
        assert read_cr(state, 8) == state.cr8


@pytest.mark.parametrize("start", MODES)
@pytest.mark.parametrize("number", range(16))
def test_registers_that_exist(start: Callable[[], PlainState], number: int) -> None:
    exists = number in (0, 2, 3, 4) or (number == 8 and start is long64)
    state = start()
    value = fault(lambda: read_cr(state, number)) or getattr(state, f"cr{number}", None)
    assert (value == UD) != exists
    same = getattr(state, f"cr{number}", 0)
    assert (fault(lambda: write_cr(state, number, same, nothing_there)) == UD) != exists
    assert state == start()


def test_cr2_holds_anything() -> None:
    for start, expected in ((long64, 0x8000_0000_0000_1234), (machine, 0x1234)):
        state = start()
        write_cr(state, 2, 0x8000_0000_0000_1234, nothing_there)
        assert (state.cr2, read_cr(state, 2)) == (expected, expected)


# -- CR4 and EFER -----------------------------------------------------------------------------------------------------

# SDM 3A "Control Registers": TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT UMIP FSGSBASE SMEP SMAP
CR4_OFFERED = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 20, 21}


@pytest.mark.parametrize("vmx", [False, True])
@pytest.mark.parametrize("number", range(64))
def test_cr4_holds_what_cpuid_offers(number: int, vmx: bool) -> None:
    state = long64()
    raised = fault(lambda: write_cr(state, 4, PAE | 1 << number, nothing_there, Rules(Offer(vmx=vmx))))
    good = number in CR4_OFFERED or (vmx and number == 13)
    assert (raised, state.cr4) == ((None, PAE | 1 << number) if good else (GP, PAE))


@pytest.mark.parametrize("start", MODES)
def test_pae_cannot_be_cleared_in_ia_32e_mode(start: Callable[[], PlainState]) -> None:
    state = start()
    raised = fault(lambda: write_cr(state, 4, PSE, nothing_there))
    assert (raised, state.cr4) == ((GP, PAE) if start in (long64, compatibility) else (None, PSE))


@pytest.mark.parametrize("number", range(64))
def test_efer_holds_sce_lme_nxe_and_ignores_lma(number: int) -> None:
    state = machine()
    raised = fault(lambda: write_efer(state, 1 << number))
    assert raised == (None if number in (0, 8, 10, 11) else GP)
    assert state.efer == (1 << number if number in (0, 8, 11) else 0)


def test_lme_cannot_change_while_paging_is_on() -> None:
    for start, lme, other in itertools.product(MODES, (0, LME), (0, SCE | NXE, LMA)):
        state, before = start(), start()
        raised = fault(lambda s=state, v=lme | other: write_efer(s, v))
        good = not before.cr0 & PG or before.efer & LME == lme
        assert raised == (None if good else GP)
        assert state.efer == ((lme | other) & ~LMA | before.efer & LMA if good else before.efer)


# -- LMSW and CLTS ----------------------------------------------------------------------------------------------------


def test_lmsw_sets_four_bits_and_never_clears_pe() -> None:
    for old, source, noise in itertools.product(range(16), range(16), (0, 0xFFF0)):
        state = machine(cr0=WP | NE | old)
        control.lmsw(state, source | noise, nothing_there)
        assert state.cr0 == WP | NE | ET | source | (old & PE)


@pytest.mark.parametrize("start", MODES)
def test_lmsw_and_clts_leave_the_rest_alone(start: Callable[[], PlainState]) -> None:
    state = start()
    state.cr0 |= TS | WP
    before = replace(state)
    control.clts(state)
    assert state == replace(before, cr0=before.cr0 & ~TS)
    control.lmsw(state, before.cr0 & 0xF, nothing_there)
    assert state == before


# -- PDPTEs ---------------------------------------------------------------------------------------------------------

PDPTE_RESERVED = {1, 2, 5, 6, 7, 8, *range(40, 64)}  # SDM 3A "PAE Paging", with MAXPHYADDR 40


class Pdptes:
    """Physical memory in which only one PDPTE, at *gpa*, is not 0. Keeps what was read."""

    def __init__(self, gpa: int, value: int) -> None:
        self.gpa, self.value, self.reads = gpa, value, []

    def __call__(self, gpa: int, size: int) -> int:
        self.reads.append((gpa, size))
        return self.value if gpa == self.gpa else 0


@pytest.mark.parametrize("number", range(64))
def test_a_present_pdpte_with_a_reserved_bit_faults_and_cr3_stays(number: int) -> None:
    for slot, present in itertools.product(range(4), (0, 1)):
        state = pae_paging()
        memory = Pdptes(0x7FE0 + 8 * slot, 1 << number | present)
        raised = fault(lambda s=state, m=memory: write_cr(s, 3, 0x7FFF, m))
        present_now = present or number == 0
        assert raised == (GP if present_now and number in PDPTE_RESERVED else None)
        assert state.cr3 == (0x5000 if raised else 0x7FFF)
        assert memory.reads == [(0x7FE0 + 8 * n, 8) for n in range(4)]


CR0_CHANGES = {"mp": MP, "em": EM, "ts": TS, "ne": NE, "wp": WP, "am": AM, "cd": CD, "nw and cd": NW | CD, "none": 0}
CR0_LOADS = {"cd", "nw and cd"}


@pytest.mark.parametrize("start", MODES)
@pytest.mark.parametrize("what", CR0_CHANGES)
def test_which_changes_of_cr0_load_the_pdptes(start: Callable[[], PlainState], what: str) -> None:
    state, memory = start(), Pdptes(0x5000, 0x3)
    state.cr0 &= ~(CD | NW)
    before = replace(state)
    raised = fault(lambda: write_cr(state, 0, before.cr0 ^ CR0_CHANGES[what], memory))
    loads = start is pae_paging and what in CR0_LOADS
    assert (bool(memory.reads), raised) == (loads, GP if loads else None)
    assert state == (before if loads else replace(before, cr0=before.cr0 ^ CR0_CHANGES[what]))


def test_paging_going_on_loads_the_pdptes_when_it_is_pae_paging() -> None:
    for cr4, efer in itertools.product((0, PAE), (0, LME)):
        if efer and not cr4:
            continue
        state, memory = machine(cr4=cr4, efer=efer), Pdptes(0x5018, 0x9001)
        write_cr(state, 0, PE | PG, memory)
        assert bool(memory.reads) == (cr4 == PAE and not efer)
        write_cr(state, 0, PE, memory)
        assert len(memory.reads) <= 4


@pytest.mark.parametrize("start", MODES)
@pytest.mark.parametrize("number", sorted(CR4_OFFERED))
def test_which_changes_of_cr4_load_the_pdptes(start: Callable[[], PlainState], number: int) -> None:
    state, memory = start(), Pdptes(0x5000, 0x8001)
    if number == 5 and start in (long64, compatibility):
        return
    write_cr(state, 4, state.cr4 ^ 1 << number, memory)
    # PSE PGE SMEP; clearing PAE leaves PAE paging, so nothing is loaded then
    assert bool(memory.reads) == (start is pae_paging and number in (4, 7, 20))


def test_setting_pae_while_paging_loads_the_pdptes() -> None:
    state, memory = machine(cr0=PE | PG), Pdptes(0x5010, 0x21)
    assert fault(lambda: write_cr(state, 4, PAE, memory)) == GP
    assert state == machine(cr0=PE | PG)


def test_load_pdptes_returns_all_four() -> None:
    values = {0x40: 0x1001, 0x48: 0, 0x50: 0xFFFF_FFFF_FFFF_FFFE, 0x58: 0xFF_FFFF_F019}
    assert control.load_pdptes(0x5F, lambda gpa, _size: values[gpa]) == tuple(values.values())


# -- UMIP -------------------------------------------------------------------------------------------------------------


def test_umip_forbids_programs_only() -> None:
    for cpl, umip in itertools.product(range(4), (0, UMIP)):
        state = machine(cr4=umip)
        state.cpl = cpl
        assert fault(lambda s=state: control.check_umip(s)) == (GP if cpl and umip else None)


# -- debug registers --------------------------------------------------------------------------------------------------

DE, GD, BD = 1 << 3, 1 << 13, 1 << 13
ALIAS = {4: 6, 5: 7}


def test_which_access_of_a_debug_register_faults() -> None:
    for start, number, de, gd, write in itertools.product(MODES, range(16), (0, DE), (0, GD), (False, True)):
        state = start()
        state.cr4, state.dr7 = state.cr4 | de, 0x400 | gd
        before = replace(state, breakpoints=[*state.breakpoints])
        action = (lambda s=state, n=number: write_dr(s, n, 0)) if write else (lambda s=state, n=number: read_dr(s, n))
        undefined = number > 7 or (number in ALIAS and de)
        raised = fault(action)
        assert raised == (UD if undefined else DB if gd else None)
        if raised:
            assert state == (before if undefined else replace(before, dr6=before.dr6 | BD))


def test_dr0_to_dr3_hold_64_bits_in_64_bit_mode_and_32_elsewhere() -> None:
    value = 0x8765_4321_0FED_CBA9
    for start, number in itertools.product(MODES, range(4)):
        state = start()
        write_dr(state, number, value)
        kept = value if start is long64 else 0x0FED_CBA9
        assert state.breakpoints == [kept if n == number else 0 for n in range(4)]
        state.breakpoints[number] = value
        assert read_dr(state, number) == kept


@pytest.mark.parametrize("number", range(64))
@pytest.mark.parametrize("register", [4, 5, 6, 7])
def test_dr6_and_dr7_have_fixed_bits_and_no_upper_half(register: int, number: int) -> None:
    # SDM 3B "Debug Status Register (DR6)", "Debug Control Register (DR7)"
    writable, ones = {6: (0xE00F, 0xFFFF_0FF0), 7: (0xFFFF_23FF, 0x400)}[ALIAS.get(register, register)]
    for start in (long64, machine):
        state, before = start(), start()
        raised = fault(lambda s=state: write_dr(s, register, 1 << number))
        assert raised == (GP if start is long64 and number >= 32 else None)
        expected = 1 << number & writable | ones
        names = {6: "dr6", 7: "dr7"}
        name = names[ALIAS.get(register, register)]
        assert state == (before if raised else replace(before, **{name: expected}))
        state.dr7 = 0x400  # GD may be set now
        if name == "dr6" and not raised:
            assert read_dr(state, register) == expected


# -- on the engine --------------------------------------------------------------------------------------------------

HLT = bytes.fromhex("f4")


def mov_eax(value: int) -> bytes:
    return b"\xb8" + value.to_bytes(4, "little")


def mov_cr(number: int, value: int) -> bytes:
    """MOV EAX, value; MOV CRn, EAX."""
    return mov_eax(value) + bytes((0x0F, 0x22, 0xC0 | number << 3))


def wrmsr_efer(value: int) -> bytes:
    """MOV ECX, EFER; XOR EDX, EDX; MOV EAX, value; WRMSR."""
    return bytes.fromhex("b9800000c0 31d2") + mov_eax(value) + bytes.fromhex("0f30")


class Tour:
    """Runs code on the engine, with MOV of EAX to control registers, and WRMSR, done by the CPU model."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.state = engine, engine.state
        self.msrs = MsrFile(engine.state, engine, lambda: engine.instructions)
        engine.arm_registers(cr_read=0x100, cr_write=0x11D, dr_read=0, dr_write=0)

    def read(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.engine.ram[gpa : gpa + size], "little")

    def run(self, *code: bytes) -> Stop:
        """Run *code* to its HLT, or to a stop that is not for the CPU model."""
        engines.place(self.engine, b"".join(code) + HLT)
        while (stop := self.engine.run(1000)).kind in EMULATED:
            self.state.retire(self.state.rip + EMULATED[stop.kind](self, stop))
        return stop

    def mov_to_cr(self, stop: Stop) -> int:
        control.write_cr(self.state, stop.detail, self.state.gpr(0), self.read)
        return 4 if stop.detail == 8 else 3

    def mov_from_cr8(self, stop: Stop) -> int:
        self.state.set_gpr(0, read_cr(self.state, stop.detail))
        return 4

    def wrmsr(self, _stop: Stop) -> int:
        high, low = (self.state.gpr(n) & 0xFFFF_FFFF for n in (2, 0))
        self.msrs.write(self.state.gpr(1) & 0xFFFF_FFFF, high << 32 | low)
        return 2


EMULATED = {Kind.CR_WRITE: Tour.mov_to_cr, Kind.CR_READ: Tour.mov_from_cr8, Kind.MSR: Tour.wrmsr}
ENTER = mov_cr(4, PAE), mov_cr(3, 0x2000), wrmsr_efer(LME | NXE), mov_cr(0, PG | WP | ET | PE)


@pytest.fixture
def tour() -> Tour:
    """In protected mode; tables for 4-level paging at 0x2000, for PAE paging at 0x5000: 2 MiB mapped to themselves."""
    engine = engines.protected()
    engines.poke(engine, 0x2000, 0x3003)
    engines.poke(engine, 0x3000, 0x4003)
    engines.poke(engine, 0x4000, 0x83)
    engines.poke(engine, 0x5000, 0x4001)
    return Tour(engine)


def test_the_engine_enters_ia_32e_mode_and_leaves_it(tour: Tour) -> None:
    state = tour.state
    assert tour.run(*ENTER).kind is Kind.HLT
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (PG | WP | ET | PE, 0x2000, PAE, NXE | LMA | LME)
    assert state.code_bits == 32  # compatibility mode, until CS has L
    state.set_segment(Sreg.CS, engines.code_segment(long=True))
    mov_r8, cr8 = bytes.fromhex("49b88877665544332211"), bytes.fromhex("440f22c0 b800000000 440f20c0")
    assert tour.run(mov_r8, mov_eax(9), cr8).kind is Kind.HLT
    assert (state.gpr(8), state.gpr(0), state.cr8) == (0x1122334455667788, 9, 9)
    state.set_segment(Sreg.CS, engines.code_segment(long=False))
    assert tour.run(mov_cr(0, ET | PE), mov_eax(0x1234567)).kind is Kind.HLT
    assert (state.cr0, state.efer, state.gpr(0)) == (ET | PE, NXE | LME, 0x1234567)
    assert tour.run(mov_cr(4, 0), wrmsr_efer(0)).kind is Kind.HLT
    assert (state.cr4, state.efer) == (0, 0)


def test_the_engine_leaves_ia_32e_mode_for_pae_paging(tour: Tour) -> None:
    state = tour.state
    load = bytes.fromhex("a100500000")  # mov eax, [0x5000]
    off = mov_cr(0, ET | PE), wrmsr_efer(0), mov_cr(3, 0x5000)
    assert tour.run(*ENTER).kind is Kind.HLT
    assert tour.run(*off).kind is Kind.HLT
    assert tour.run(mov_cr(0, PG | ET | PE), load).kind is Kind.HLT
    assert (state.cr0, state.efer, state.gpr(0)) == (PG | ET | PE, 0, 0x4001)
    engines.poke(tour.engine, 0x6000, 0x4003)  # RW is reserved in a PDPTE
    with pytest.raises(Fault) as raised:
        tour.run(mov_cr(3, 0x6000))
    assert (raised.value, state.cr3) == (GP, 0x5000)


def test_the_engine_goes_to_real_mode_and_back(tour: Tour) -> None:
    state = tour.state
    assert tour.run(mov_cr(0, ET)).kind is Kind.HLT
    for sreg in Sreg:
        state.set_segment(sreg, Segment(0, 0, 0xFFFF, AccessRights(type=3, s=1, p=1)))
    mov_ds = bytes.fromhex("b80007 8ed8")  # mov ax, 0x700; mov ds, ax
    assert tour.run(mov_ds).kind is Kind.HLT
    assert state.segment(Sreg.DS).base == 0x7000  # no descriptor, but the selector times 16
    assert tour.run(b"\x66", mov_cr(0, ET | PE), mov_ds).kind is Kind.EXCEPTION
    assert state.cr0 == ET | PE


def test_the_engine_honours_wp_after_a_write(tour: Tour) -> None:
    store = bytes.fromhex("a300002000")  # mov [0x200000], eax
    engines.poke(tour.engine, 0x4008, 0x20_0081)  # read-only, at 2 MiB
    assert tour.run(*ENTER).kind is Kind.HLT
    assert tour.run(mov_cr(0, PG | ET | PE), store).kind is Kind.HLT
    stop = tour.run(mov_cr(0, PG | WP | ET | PE), store)
    assert (stop.kind, stop.detail, stop.error_code) == (Kind.EXCEPTION, Vector.PF, 3)


def test_the_engine_keeps_dr0_to_dr3(tour: Tour) -> None:
    for number in range(4):
        write_dr(tour.state, number, 0x1000 + number)
    assert tour.run(bytes.fromhex("0f21c1 0f21ca 0f21d3 0f21d8")).kind is Kind.HLT  # ecx, edx, ebx = dr0..; eax = dr3
    assert [tour.state.gpr(n) for n in (1, 2, 3, 0)] == [0x1000, 0x1001, 0x1002, 0x1003]
    assert [read_dr(tour.state, n) for n in range(4)] == [0x1000, 0x1001, 0x1002, 0x1003]
