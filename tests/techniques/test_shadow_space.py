"""Guests with page tables of their own under the monitor, which follows them, hides from them, and gives way."""

from __future__ import annotations

import struct
from random import Random

import pytest

from hvemu.events import Ending, How
from hvemu.memory.physical import Ram
from hvemu.memory.shadow_tree import PAGE
from hvemu.techniques.shadow_descriptors import PAGES, shadow
from hvemu.techniques.shadow_space import PLACES
from hvemu.techniques.vm import Budget
from hvemu.x86.registers import Gpr
from tests.techniques.kernels import CODE, EXIT_0, RAM, kernel, machine

BUDGET = Budget(max_instructions=100_000, max_exits=5000)
MASK = "b0ffe621e6a1"
PD, PT, OTHER_PD, PT2 = 0x20_0000, 0x20_1000, 0x20_2000, 0x20_3000
OUT, GDT = 0x12_0000, 0x13_0000
P, W, U, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NAMED_FRAMES = {0x30_0000 + PAGE * n: struct.pack("<I", 0x1000 + n) for n in range(8)}
"""Pages that say which they are."""
PF = {14: "580f20d1890d00001200a304001200" + "b050e6e9" + EXIT_0}
FAULTS = {vector: f"58b0{ord(letter):02x}e6e9" + EXIT_0 for vector, letter in ((13, "G"), (11, "N"), (12, "S"))} | PF


def le(value, size=4):
    return value.to_bytes(size, "little").hex()


def identity(flags=P | W | U):
    """A page table that maps the first 4 MiB to themselves."""
    return struct.pack("<1024I", *(PAGE * n | flags for n in range(1024)))


def directory(**entries):
    """A page directory: the first entry is PT, the others by number."""
    table = [PT | P | W | U, *[0] * 1023]
    for n, value in entries.items():
        table[int(n[1:])] = value
    return struct.pack("<1024I", *table)


PAGING_ON = "b8" + le(PD) + "0f22d8" + "b810000000" + "0f22e0" + "0f20c00d000000800f22c0"  # PSE; CR0.PG
SELECTORS = "b810000000" + "8ed88ec08ed0" + "bc00000a00"


def build(code, data=None, handlers=None, pd=None, on=PAGING_ON):
    tables = {PD: pd or directory(), PT: identity(), OUT: bytes(64), **NAMED_FRAMES}
    return kernel(SELECTORS + MASK + on + code + EXIT_0, handlers or FAULTS, {**tables, **(data or {})})


def outcome(image, technique):
    m = machine(image, technique)
    result = m.run(BUDGET)
    view = m.technique.view
    registers = [view.gpr(n) for n in range(8) if n != Gpr.RAX]
    return result.ending, result.console, m.vm.ram.read_bytes(OUT, 64), registers, view.cr2


def same(image):
    """Assert that the guest sees the same on the bare machine; return its memory at OUT."""
    monitored, bare = outcome(image, "deprivilege"), outcome(image, "bare")
    assert monitored == bare
    return bare[2]


def read(gva, slot):
    return "a1" + le(gva) + "a3" + le(OUT + 4 * slot)


def words(data, count):
    return list(struct.unpack_from(f"<{count}I", data))


# -- the monitor gives way ---------------------------------------------------------------------------------------------

PLACE = PLACES[0]
SLOT = PLACE >> 22
MAPPING = PT2 | P | W
HIGH = {PT2: struct.pack("<1024I", *(0x30_0000 + PAGE * (n % 8) | P | W for n in range(1024)))}
# how the guest comes to map pages where the monitor is
WAYS = {
    "MOV": "c705" + le(PD + 4 * SLOT) + le(MAPPING),
    "XCHG": "b8" + le(MAPPING) + "8705" + le(PD + 4 * SLOT),
    "STOS": "b8" + le(MAPPING) + "bf" + le(PD + 4 * SLOT) + "ab",
    "PUSH": "89e1bc" + le(PD + 4 * SLOT + 4) + "68" + le(MAPPING) + "89cc",
    "bytes": "c605" + le(PD + 4 * SLOT + 1) + f"{MAPPING >> 8 & 0xFF:02x}" + "c605" + le(PD + 4 * SLOT + 2) + "20"
    + "c605" + le(PD + 4 * SLOT) + "03",
    "CR3": "c705" + le(OTHER_PD + 4 * SLOT) + le(MAPPING) + "b8" + le(OTHER_PD) + "0f22d8",
    "4 MiB page": "c705" + le(PD + 4 * SLOT) + le(P | W | PS),
}  # fmt: skip


@pytest.mark.parametrize("first", ["read", "write"])
@pytest.mark.parametrize("way", WAYS)
def test_the_monitor_moves_when_the_guest_maps_its_place(way, first):
    use = read(PLACE + 0x1000, 0) if first == "read" else "c705" + le(PLACE + 0x1008) + le(0x5EED)
    image = build(WAYS[way] + use + read(PLACE + 0x2000, 1) + read(PLACE + 0x1008, 2), {**HIGH, OTHER_PD: directory()})
    seen = words(same(image), 3)
    if way != "4 MiB page":
        assert seen[1] == 0x1002
        assert seen[0] == (0x1001 if first == "read" else 0)
        assert seen[2] == (0x5EED if first == "write" else 0)
    m = machine(image, "deprivilege")
    m.run(BUDGET)
    assert m.vm.cpu.state.gdtr.base == PLACES[1]


def test_it_moves_when_paging_goes_on_with_its_place_mapped():
    image = build(read(PLACE + 0x3000, 0), HIGH, pd=directory(**{f"n{SLOT}": MAPPING}))
    assert words(same(image), 1) == [0x1003]


@pytest.mark.parametrize("slot", [0x3FF, SLOT])
def test_a_page_directory_that_maps_itself(slot):
    """The guest changes an entry through it, and reads what that maps."""
    base = slot << 22
    own = base + (0x300 << 2)  # the entry for gva 0x300000
    code = (
        "c705" + le(own) + le(0x30_5000 | P | W) + "0f013d00003000" + read(0x30_0000, 0) + read(base + (slot << 12), 1)
    )
    image = build(code, pd=directory(**{f"n{slot}": PD | P | W}))
    seen = words(same(image), 2)
    assert seen[0] == 0x1005
    assert seen[1] & ~(A | D) == PT | P | W | U


def test_a_guest_that_leaves_one_place_free_keeps_the_monitor_there():
    free = PLACES[37] >> 22
    everything = {f"n{n}": P | W | PS for n in range(1, 1024) if n != free}
    image = build(read(PLACE + 0x30_1000, 0) + read((free ^ 1) << 22 | 0x30_2000, 1), pd=directory(**everything))
    assert words(same(image), 2) == [0x1001, 0x1002]
    m = machine(image, "deprivilege")
    m.run(BUDGET)
    assert m.vm.cpu.state.gdtr.base == PLACES[37]


def test_a_guest_that_uses_every_linear_address_is_told_so():
    everything = {f"n{n}": P | W | PS for n in range(1, 1024)}
    result = machine(build("", pd=directory(**everything)), "deprivilege").run(BUDGET)
    assert result.ending == Ending(How.DIED, why="the guest uses every linear address at which the monitor could be")


def test_the_monitors_place_is_not_present_to_the_guest():
    """A store to it is the guest's own page fault."""
    image = build("c705" + le(PLACE + 0x1000) + "00000000")
    assert words(same(image), 2) == [PLACE + 0x1000, 2]


# -- stores into page tables -------------------------------------------------------------------------------------------

ENTRY = PT + 4 * 0x300  # for gva 0x300000
NEW = 0x30_1000 | P | W | U
STORES = {
    "MOV 32": "c705" + le(ENTRY) + le(NEW),
    "MOV 16": "66c705" + le(ENTRY) + le(NEW & 0xFFFF, 2),
    "MOV 8": "c605" + le(ENTRY + 1) + "10",
    "MOV EAX": "b8" + le(NEW) + "a3" + le(ENTRY),
    "XCHG": "b8" + le(NEW) + "8705" + le(ENTRY),
    "XADD": "b800100000" + "0fc105" + le(ENTRY),
    "CMPXCHG": "a1" + le(ENTRY) + "b9" + le(NEW) + "f00fb10d" + le(ENTRY),
    "CMPXCHG8B": "a1" + le(ENTRY) + "8b15" + le(ENTRY + 4) + "bb" + le(NEW) + "b9" + le(NEW + PAGE)
    + "0fc70d" + le(ENTRY),
    "BTS": "0fba2d" + le(ENTRY) + "0c",
    "BTS EAX": "b80c000000" + "0fab05" + le(ENTRY),
    "OR": "810d" + le(ENTRY) + le(0x1000),
    "ADD 8": "8005" + le(ENTRY + 1) + "10",
    "AND": "8125" + le(ENTRY) + le(0xFFFF_FFFE),
    "INC": "ff05" + le(ENTRY),
    "NEG": "f71d" + le(ENTRY),
    "SHL": "c125" + le(ENTRY) + "01",
    "SETZ": "31c0" + "0f9405" + le(ENTRY),
    "PUSH": "89e1bc" + le(ENTRY + 4) + "68" + le(NEW) + "89cc",
    "PUSHA": "89e5bc" + le(ENTRY + 32) + "bf" + le(NEW) + "be" + le(NEW + PAGE) + "6089ec",
    "PUSHF": "89e1bc" + le(ENTRY + 4) + "9c89cc",
    "CALL": "89e1bc" + le(ENTRY + 4) + "e80000000089cc",
    "POP [m]": "68" + le(NEW) + "8f05" + le(ENTRY),
    "MOVSD": "be" + le(OUT + 32) + "bf" + le(ENTRY) + "a5",
    "REP MOVSD": "be" + le(OUT + 32) + "bf" + le(ENTRY - 4) + "b904000000" + "f3a5",
    "REP MOVSB": "be" + le(OUT + 32) + "bf" + le(ENTRY) + "b908000000" + "f3a4",
    "REP STOSD": "b8" + le(NEW) + "bf" + le(ENTRY) + "b903000000" + "f3ab",
    "backwards": "fd" + "b8" + le(NEW) + "bf" + le(ENTRY + 8) + "b903000000" + "f3abfc",
    "across": "c705" + le(ENTRY - 2) + le((NEW & 0xFFFF) << 16 | 0x2F),
    "FNSTCW": "9bd93d" + le(ENTRY),
    "MOVQ": "0fefc0" + "0f7f05" + le(ENTRY),
    "SGDT": "0f0105" + le(ENTRY - 16),
}  # fmt: skip


@pytest.mark.parametrize("store", STORES)
def test_every_kind_of_store_into_a_page_table_counts(store):
    """The page is read before, then the store and INVLPG, then it is read again."""
    data = {OUT + 32: struct.pack("<4I", NEW, NEW + PAGE, NEW + 2 * PAGE, NEW + 3 * PAGE)}
    code = read(0x30_0000, 0) + STORES[store] + "0f013d00003000" + read(0x30_0000, 1)
    seen = same(build(code, data))
    assert words(seen, 1) == [0x1000] or words(seen, 2)[0] == 0x30_0000  # or CR2, where it is not present any more


@pytest.mark.parametrize("tables", ["two tables", "table and data", "data and table"])
def test_a_store_across_two_pages_of_which_tables_are(tables):
    first = {"two tables": PT, "table and data": PT, "data and table": PT - PAGE}[tables]
    pd = directory(n1=PT2 | P | W) if tables != "two tables" else directory(n1=OTHER_PD | P | W)
    other = {OTHER_PD: identity(), PT2: identity()}
    # the last entry of one page gets its upper half, the first entry of the next its lower half
    code = read(0x3F_F000, 0) + read(0x40_0000, 1) + "c705" + le(first + PAGE - 2) + le(0x1003_0030)
    code += "0f20d80f22d8" + read(0x3F_F000, 2) + read(0x40_0000, 3)
    m = machine(build(code, other, pd=pd), "deprivilege")
    same(build(code, other, pd=pd))
    assert m.run(BUDGET).by_reason["TRACED_WRITE"] >= 1


def test_a_program_may_write_to_a_page_table_that_is_its_own():
    """In ring 3, the table is mapped for users."""
    program = CODE + 0x400
    gdt = {GDT: struct.pack("<6Q", 0, 0xCF9B000000FFFF, 0xCF93000000FFFF, 0xCFFB000000FFFF, 0xCFF3000000FFFF,
                            0x0000_8900_0000_0067 | (GDT + 0x100) << 16),
           GDT - 8: struct.pack("<HI", 0x2F, GDT), GDT + 0x104: struct.pack("<II", 0x9_0000, 0x10)}  # fmt: skip
    start = "0f0115" + le(GDT - 8) + "b8280000000f00d8" + "6a2368" + le(0xB_0000) + "6a026a1b68" + le(program) + "cf"
    body = read(0x30_0000, 0) + STORES["MOV 32"] + read(0x30_0000 + 0x4000, 1) + "f4"
    image = build(
        start, {**gdt, program: bytes.fromhex(body)}, {**FAULTS, 13: "0f013d00003000" + read(0x30_0000, 2) + EXIT_0}
    )
    assert words(same(image), 3) == [0x1000, 0x1004, 0x1001]


# -- protection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wp", [0, 1])
@pytest.mark.parametrize("flags", [P, P | U, P | W, P | W | U])
def test_write_protection_of_the_kernel(wp, flags):
    pages = bytearray(identity())
    struct.pack_into("<I", pages, 4 * 0x300, 0x30_0000 | flags)
    code = "0f20c0" + f"0d0000{wp:02x}000f22c0" + "c70500003000" + le(0x77) + read(0x30_0000, 0)
    seen = same(build(code, {PT: bytes(pages)}))
    assert words(seen, 2) == ([0x30_0000, 3] if wp and not flags & W else [0x77, 0])


@pytest.mark.parametrize(("bits", "use", "error"), [
    (1 << 20, "b800003000ffe0", 0x11),  # SMEP: a fetch from a user page
    (1 << 21, read(0x30_0000, 0), 1), (1 << 21, "c70500003000" + le(0), 3),  # SMAP: a read and a write
])  # fmt: skip
@pytest.mark.parametrize("user", [0, U])
def test_smep_and_smap(bits, use, error, user):
    pages = bytearray(identity(P | W))
    struct.pack_into("<I", pages, 4 * 0x300, 0x30_0000 | P | W | user)
    on = "0f20e0" + "0d" + le(bits) + "0f22e0"
    body = bytes.fromhex(EXIT_0)
    seen = same(build(on + use, {PT: bytes(pages), 0x30_0000: body}))
    assert words(seen, 2) == [0x30_0000, error] if user else words(seen, 2)[1] == 0


def test_smap_lets_the_kernel_through_with_ac():
    on = "0f20e0" + "0d" + le(1 << 21) + "0f22e0" + "9c810c2400000400" + "9d"
    pages = bytearray(identity(P | W))
    struct.pack_into("<I", pages, 4 * 0x300, 0x30_0000 | P | W | U)
    assert words(same(build(on + read(0x30_0000, 0), {PT: bytes(pages)})), 1) == [0x1000]


NX, PDPT, PAE_PD, PAE_PT = 1 << 63, 0x21_0000, 0x21_1000, 0x21_2000
PAE_ON = ("b9800000c00f320d000800000f30" + "b8" + le(PDPT) + "0f22d8" + "b820000000" + "0f22e0"
          + "0f20c00d000000800f22c0")  # fmt: skip


@pytest.mark.parametrize("nx", [0, NX])
@pytest.mark.parametrize("use", ["read", "execute"])
def test_pae_and_nx(nx, use):
    small = struct.pack("<512Q", *(0x20_0000 + PAGE * n | P | W | (nx if n == 0x100 else 0) for n in range(512)))
    data = {
        PDPT: struct.pack("<4Q", PAE_PD | P, 0, 0, 0),
        PAE_PD: struct.pack("<512Q", P | W | PS, PAE_PT | P | W, *[0] * 510),
        PAE_PT: small, 0x30_0000: bytes.fromhex(EXIT_0),
    }  # fmt: skip
    code = read(0x30_0000, 3) if use == "read" else "b800003000ffe0"
    seen = same(build(code, data, on=PAE_ON))
    assert words(seen, 2) == ([0x30_0000, 0x11] if nx and use == "execute" else [0, 0])


def test_pae_page_tables_are_followed_too():
    small = struct.pack("<512Q", *(0x20_0000 + PAGE * n | P | W for n in range(512)))
    data = {
        PDPT: struct.pack("<4Q", PAE_PD | P, 0, 0, PAE_PD | P), PAE_PT: small,
        PAE_PD: struct.pack("<512Q", P | W | PS, PAE_PT | P | W, *[0] * 510),
    }  # fmt: skip
    code = read(0x30_0000, 0) + "c705" + le(PAE_PT + 8 * 0x100) + le(0x30_2003) + "0f013d00003000" + read(0x30_0000, 1)
    assert words(same(build(code, data, on=PAE_ON)), 2) == [0x1000, 0x1002]


# -- descriptor tables behind page tables ------------------------------------------------------------------------------

GVA = 0x30_0000


def gdt_with(base):
    """A GDT whose fourth descriptor is data at *base*."""
    return struct.pack("<4Q", 0, 0xCF9B000000FFFF, 0xCF93000000FFFF, 0xCF93000000FFFF | base << 16)


@pytest.mark.parametrize("way", ["CR3", "INVLPG"])
def test_descriptor_tables_follow_the_page_tables(way):
    """Two frames hold two GDTs; FS is loaded before the gva moves from one to the other, and after."""
    data = {0x30_0000: gdt_with(0x30_2000), 0x30_1000: gdt_with(0x30_3000), OUT + 32: struct.pack("<HI", 0x1F, GVA),
            OTHER_PD: directory()}  # fmt: skip
    other = bytearray(identity())
    struct.pack_into("<I", other, 4 * 0x300, 0x30_1000 | P | W)
    data |= {PT2: bytes(other), OTHER_PD: struct.pack("<1024I", PT2 | P | W | U, *[0] * 1023)}
    load = "b8180000008ee0" + "64a100000000"
    move = "b8" + le(OTHER_PD) + "0f22d8" if way == "CR3" else STORES["MOV 32"] + "0f013d00003000"
    code = "0f0115" + le(OUT + 32) + load + "a3" + le(OUT) + move + load + "a3" + le(OUT + 4)
    assert words(same(build(code, data)), 2) == [0x1002, 0x1003]


def test_the_accessed_bit_goes_through_the_guests_own_mapping():
    """The GDT is read-only to the kernel under WP: loading a segment that was not accessed is a page fault."""
    table = struct.pack("<4Q", 0, 0xCF9B000000FFFF, 0xCF93000000FFFF, 0xCF92000000FFFF)
    pages = bytearray(identity())
    struct.pack_into("<I", pages, 4 * 0x300, 0x30_0000 | P)
    code = "0f0115" + le(OUT + 32) + "0f20c00d000001000f22c0" + "b8180000008ee0"
    image = build(code, {PT: bytes(pages), 0x30_0000: table, OUT + 32: struct.pack("<HI", 0x1F, GVA)})
    for technique in ("bare", "deprivilege"):  # which byte of the descriptor is written the manual leaves open
        cr2, error = words(outcome(image, technique)[2], 2)
        assert (cr2 & ~7, error) == (GVA + 0x18, 3)


# -- nothing else is ever mapped --------------------------------------------------------------------------------------


def check(m, idt, tss):
    """The invariants of what the processor may reach."""
    space, vm = m.technique.space, m.vm
    first, last = vm.ram.base, vm.ram.base + vm.ram.size
    own = set(space._own)
    for tree in space.shadow._trees.values():
        for gva, entry in tree.leaves():
            assert first <= entry.hpa < last, f"gva {gva:#x}: {entry!r}"
            assert not entry.w or entry.hpa not in space.shadow.traces, f"gva {gva:#x}: {entry!r} is a page table"
        for gva in tree._pins:
            entry = tree.leaf(gva)
            assert entry.hpa in own
            assert (entry.w, entry.u, entry.nx) == (0, 0, 1)
    host = Ram(vm.engine.ram)
    assert host.read_bytes(space._own[2 * PAGES], PAGE) == idt
    assert host.read_bytes(space._own[2 * PAGES + 1], PAGE) == tss
    for table, pages in ((space._gdt, space._own[:PAGES]), (space._ldt, space._own[PAGES : 2 * PAGES])):
        for at in range(0, len(table.guest) // 8 * 8, 8):
            raw = int.from_bytes(table.guest[at : at + 8], "little")
            assert host.read(pages[at // PAGE] + at % PAGE, 8) in (shadow(raw), 0 if raw == 0 else shadow(raw))


PIECES = [
    "0f22d8", "0f20c3", "0f22c0", "0f22e0", "0f20d8", "0f0115" + le(GDT - 8), "0f011d" + le(GDT - 8), "0f00d0",
    "0f00d8", "8ed8", "8ec0", "8ed0", "8ee0", "fa", "fb", "f4", "9c", "9d", "cf", "cb", "60", "61", "0f0138", "0f30",
    "0f32", "0f06", "0f01f0", "ab", "a5", "f3ab", "8900", "8b00", "c700" + le(0x20_0003), "0fab00", "8710", "ff30",
    "8f00", "cd80", "cc", "0f23f8", "0f23c0", "0f21f0", "0f34", "0f35", "ea00001000" + "0800", "e4e9", "e6e9", "6e",
    "6c", "0fa2", "0f31", "0f0b",
]  # fmt: skip


def random_kernel(seed):
    """Code of random pieces and bytes over random registers, page tables and descriptors."""
    random = Random(seed)
    addresses = [
        PD,
        PT,
        OTHER_PD,
        PT2,
        GDT,
        OUT,
        PLACE,
        PLACE + 0x2_0000,
        PLACE + 0x2_1000,
        0xFFC0_0000,
        CODE,
        0x30_0000,
    ]

    def piece():
        kind = random.random()
        if kind < 0.35:
            address = random.choice(addresses) + random.choice((0, 4 * SLOT, 0xFFE, 4 * 0x300))
            return f"{0xB8 + random.choice((0, 1, 2, 3, 6, 7)):02x}" + le(address % 2**32)
        if kind < 0.85:
            return random.choice(PIECES)
        return random.randbytes(random.randint(1, 4)).hex()

    def entry():
        return random.choice(
            (0, random.getrandbits(32), random.randrange(RAM // PAGE) * PAGE | random.getrandbits(8) | P)
        )

    code = "".join(piece() for _ in range(60))
    pd = [PT | P | W | U, *(entry() if random.random() < 0.3 else 0 for _ in range(1023))]
    pt = [PAGE * n | P | W | U if random.random() < 0.9 or n in (0x100, 0x200, 0x201) else entry() for n in range(1024)]
    gdt = [0, 0xCF9A000000FFFF, 0xCF92000000FFFF, *(random.getrandbits(64) for _ in range(13))]
    data = {PT: struct.pack("<1024I", *pt), GDT: struct.pack("<16Q", *gdt), GDT - 8: struct.pack("<HI", 0x7F, GDT),
            PT2: random.randbytes(PAGE), OTHER_PD: struct.pack("<1024I", *pd[::-1][:1023], PT | P | W)}  # fmt: skip
    handlers = dict.fromkeys(range(20), "8304240283c404cf") | {0x80: "cf"}
    on = PAGING_ON if random.random() < 0.7 else ""
    return build(code, data, handlers, pd=struct.pack("<1024I", *pd), on=on)


@pytest.mark.parametrize("block", [0, 1, *(pytest.param(n, marks=pytest.mark.soak) for n in range(2, 40))])
def test_whatever_a_kernel_does_it_reaches_nothing_but_its_own_memory(block):
    endings = set()
    for seed in range(50 * block, 50 * block + 50):
        m = machine(random_kernel(seed), "deprivilege")
        host = Ram(m.vm.engine.ram)
        idt, tss = (host.read_bytes(m.technique.space._own[n], PAGE) for n in (2 * PAGES, 2 * PAGES + 1))
        for part in (1, 2):
            result = m.run(Budget(max_instructions=60 * part, max_exits=25 * part))
            check(m, idt, tss)
        endings.add(result.ending.how)
    assert {How.DIED} < endings
