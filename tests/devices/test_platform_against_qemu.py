"""The platform against QEMU's machine `pc`: what firmware leaves, and random accesses to every device.

Where QEMU decides otherwise than the manuals, the choices keep away; each place says so.
"""

from __future__ import annotations

import random
import struct

import pytest

from hvemu.devices import acpi_tables, mp_table
from hvemu.devices.bus import Bus
from hvemu.devices.device import unconnected
from hvemu.devices.pic import PicPair
from hvemu.devices.platform import Platform, Wires
from hvemu.devices.serial import Uart
from tests.devices.qemu_rig import QEMU, RAM_MIB, ask_qemu

pytestmark = [pytest.mark.soak, pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")]
SPURIOUS = {0xFF, 0xCF}
LAST_WAS_COMMAND = 0x08
LAPIC, IOAPIC, HPET = 0xFEE00000, 0xFEC00000, 0xFED00000
STOP_TIMER = [("out", 0x43, 1, 0x30)]


def nothing():
    """A wire that leads nowhere."""


class Ours:
    """The platform with a UART at IRQ 4, and all steps that the oracle knows."""

    def __init__(self):
        pic = PicPair.as_firmware_leaves_it()
        wires = Wires(nmi=nothing, reset=nothing, power_off=nothing, a20=unconnected)
        self.platform = Platform(clock=lambda: 0, tsc_time=lambda tsc: tsc, pic=pic, wires=wires, ram=RAM_MIB << 20)
        self.ports, self.memory = Bus(), Bus()
        for bus, places in ((self.ports, self.platform.ports()), (self.memory, self.platform.memory())):
            for first, number, device, offset, width in places:
                bus.add(first, number, device, offset=offset, width=width)
        for first, offset in ((0x20, PicPair.MASTER), (0xA0, PicPair.SLAVE), (0x4D0, PicPair.ELCR)):
            self.ports.add(first, 2, pic, offset=offset)
        uart = Uart.as_firmware_leaves_it(irq=self.platform.line(4), output=unconnected)
        self.ports.add(0x3F8, 8, uart)

    def take(self):
        apic, vectors = self.platform.lapic, []
        while apic.pending():
            vectors.append(apic.acknowledge())
        return vectors

    def step(self, kind, *rest):
        act = {
            "in": self.ports.read, "out": self.ports.write, "load": self.memory.read, "store": self.memory.write,
            "take": self.take,
        }  # fmt: skip
        return act[kind](*rest)


def genuine(step, answer):
    """Leave out what QEMU does not tell: which port of the keyboard controller was written last."""
    return answer | LAST_WAS_COMMAND if step == ("in", 0x64, 1) else without_spurious(answer)


def without_spurious(answer):
    """Leave out spurious vectors: QEMU does not withdraw a request when the task priority rises before it is taken."""
    return [vector for vector in answer if vector not in SPURIOUS] if isinstance(answer, list) else answer


def compare(steps, tmp_path, *options):
    """Make the steps here and there; the first step that shows something else is what fails."""
    ours = Ours()
    mine = [genuine(step, ours.step(*step)) for step in steps]
    theirs = [genuine(*pair) for pair in zip(steps, ask_qemu(steps, tmp_path, *options), strict=True)]
    different = [i for i, (a, b) in enumerate(zip(theirs, mine, strict=True)) if a != b]
    assert [(i, steps[max(0, i - 9) : i + 1], theirs[i], mine[i]) for i in different[:1]] == []


# -- what firmware leaves ---------------------------------------------------------------------------------------------


def test_what_firmware_leaves_in_the_interrupt_controllers(tmp_path):
    # The firmware's own IRQs 0 and 4 may be pending in the 8259As: not compared. QEMU has no reserved registers.
    registers = [0x20, 0x30, *range(0x80, 0xC0, 16), *range(0xD0, 0x280, 16), *range(0x300, 0x3A0, 16), 0x3E0]
    steps = [("load", LAPIC + offset, 4) for offset in registers]
    for index in (0, 1, 2, *range(0x10, 0x40)):
        steps += [("store", IOAPIC, 4, index), ("load", IOAPIC + 0x10, 4)]
    steps += [("in", port, 1) for port in (0x21, 0xA1, 0x4D0, 0x4D1)]
    compare(steps, tmp_path)


def test_what_firmware_leaves_in_the_chipset(tmp_path):
    steps = [("in", 0x92, 1), ("in", 0xCF9, 1), ("in", 0x64, 1), ("out", 0x64, 1, 0x20), ("in", 0x60, 1)]
    steps += [("out", 0x64, 1, 0xD0), ("in", 0x60, 1), ("in", 0x602, 2), ("in", 0x604, 2), ("in", 0xB2, 1)]
    for place in (0x0000, 0x0800, 0x1000, 0x1800, 0xF800):
        for register in range(0, 256, 4):
            steps += [("out", 0xCF8, 4, 0x80000000 | place | register), ("in", 0xCFC, 4)]
    steps += [("load", HPET + offset, 4) for offset in range(0, 0x160, 4)]
    compare(steps, tmp_path)


@pytest.mark.parametrize("mib", [8, 64, RAM_MIB, 512])
def test_what_firmware_leaves_in_cmos_ram(tmp_path, mib):
    # 0x2d and 0x38 to 0x3f are for QEMU's firmware: how to boot.
    indexes = [i for i in (10, 11, 13, *range(14, 128)) if i not in {0x2D, *range(0x38, 0x40)}]
    steps = [step for i in indexes for step in (("out", 0x70, 1, i), ("in", 0x71, 1))]
    ours = Ours()
    ours.platform.rtc = type(ours.platform.rtc)(clock=lambda: 0, irq=unconnected, ram=mib << 20)
    theirs = ask_qemu(steps, tmp_path, "-m", str(mib))[1::2]
    mine = []
    for i in indexes:
        ours.platform.rtc.write(0, 1, i)
        mine.append(ours.platform.rtc.read(1, 1))
    assert [(hex(i), a, b) for i, a, b in zip(indexes, theirs, mine, strict=True) if a != b] == []


def test_fw_cfg_items(tmp_path):
    # QEMU has DMA besides, and more files.
    steps = []
    for key, count in ((0, 6), (2, 16), (3, 10), (4, 2), (5, 3), (0xE, 2), (0xF, 3), (0x19, 3), (0x8000, 4), (0x77, 2)):
        steps += [("out", 0x510, 2, key), *[("in", 0x511, 1)] * count, ("in", 0x510, 2)]
    compare(steps, tmp_path)


# -- tables -----------------------------------------------------------------------------------------------------------

BIOS_AREA = (0xE0000, 0x20000)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """All tables of QEMU's firmware, by signature."""
    directory = tmp_path_factory.mktemp("tables")
    (bios,) = ask_qemu([("dump", *BIOS_AREA)], directory)
    rsdt = struct.unpack_from("<I", bios, bios.index(b"RSD PTR ") + 16)[0]
    top = rsdt // 0x10000 * 0x10000
    (high,) = ask_qemu([("dump", top, 0x10000)], directory)

    def table(gpa):
        (length,) = struct.unpack_from("<I", high, gpa - top + 4)
        return high[gpa - top : gpa - top + length]

    found = {b"RSDT": table(rsdt)}
    for (gpa,) in struct.iter_unpack("<I", found[b"RSDT"][36:]):
        found[table(gpa)[:4]] = table(gpa)
    at = bios.index(b"PCMP")
    found[b"PCMP"] = bios[at : at + struct.unpack_from("<H", bios, at + 4)[0]]
    return found


def test_the_fixed_description_is_the_same_but_for_what_there_is_not(theirs):
    mine = acpi_tables.fadt(0)
    # No general-purpose events (80-83 and 92), no power button (a bit of 112).
    ignored = {9, *range(10, 44), *range(80, 84), 92, 112}
    their = theirs[b"FACP"]
    assert [(i, a, b) for i, (a, b) in enumerate(zip(their, mine, strict=True)) if i not in ignored and a != b] == []
    assert mine[112] ^ their[112] == 0x10


def test_the_event_timer_is_described_in_the_same_way(theirs):
    assert acpi_tables.hpet()[36:] == theirs[b"HPET"][36:]


def entries(madt):
    at, found = 44, []
    while at < len(madt):
        found.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    return found


def test_the_interrupt_controllers_are_described_in_the_same_way(theirs):
    mine, their = acpi_tables.madt(), theirs[b"APIC"]
    assert mine[36:44] == their[36:44]
    pci = {5, 10, 11}  # lines of PCI interrupts, of which there are none here
    assert entries(mine) == [e for e in entries(their) if not (e[0] == 2 and e[3] in pci)]


def test_the_mp_table_is_the_same_but_for_pci_interrupts(theirs):
    their = theirs[b"PCMP"]
    signature, features = struct.unpack_from("<II", their, 48)
    mine = mp_table.configuration(signature, features)
    assert mine[36:44] == their[36:44]
    size, found = 44, []
    while size < len(their):
        length = 20 if their[size] == 0 else 8
        found.append(their[size : size + length])
        size += length
    expected = [e for e in found if not (e[0] == 3 and e[4] == 0)]
    # It says version 0x11 where the register of its I/O APIC says 0x20.
    assert expected[3][2] == 0x11
    expected[3] = expected[3][:2] + b"\x20" + expected[3][3:]
    # It gives pin 9 to a PCI interrupt, which here is the ISA interrupt of power management.
    mine = [e for e in mp_table.entries(signature, features) if not (e[0] == 3 and e[5] == 9)]
    assert mine == expected


# -- random accesses --------------------------------------------------------------------------------------------------

TPR, EOI, LDR, DFR, SVR, ICR, ICR_HIGH = 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x300, 0x310
BANKS = range(0x100, 0x280, 16)
VECTORS = (0x31, 0x3F, 0x52, 0x77, 0x90, 0xEE)
# QEMU stores reserved bits, sets no mask bits when the APIC is disabled, checks no vector, keeps no errors and takes
# the trigger mode of any message for TMR; its flat model lets a broadcast match no logical ID of 0.
LAPIC_CHOICES = {
    TPR: [0x00, 0x20, 0x35, 0x50, 0x9F, 0xF0],
    LDR: [0x01000000, 0x06000000, 0xF1000000],
    DFR: [0xFFFFFFFF],
    SVR: [0x1FF, 0x1CF],
    ICR: [s << 18 | 0x4000 | logical | mode << 8 | v for s in range(4) for logical in (0, 0x800) for mode in (0, 1)
          for v in VECTORS],
    ICR_HIGH: [0, 0x01000000, 0x02000000, 0xF0000000],
    0x320: [0x10000, 0x40, 0x20041], 0x330: [0x10000, 0x10480], 0x340: [0x10000, 0x10051], 0x350: [0x8700, 0x10700],
    0x360: [0x8400, 0x10400], 0x370: [0x10000, 0xFE], 0x3E0: [0, 1, 3, 8, 11],
}  # fmt: skip
LAPIC_READS = [TPR, 0xA0, LDR, DFR, SVR, ICR, ICR_HIGH, *range(0x320, 0x390, 16), 0x3E0, *BANKS]
UART_IER, UART_MCR = 0x3F9, 0x3FC


# With LINT0 masked while the 8259As ask for an interrupt, QEMU delivers vector -1.
WITH_PINS = LAPIC_CHOICES | {0x350: [0x700, 0x8700]}


def lapic_step(chance, choices):
    kind = chance.randrange(8)
    if kind < 3:
        offset = chance.choice([*choices])
        return [("store", LAPIC + offset, 4, chance.choice(choices[offset]))]
    if kind < 6:
        return [("load", LAPIC + chance.choice(LAPIC_READS), 4)]
    return [("take",)] if kind == 6 else [("store", LAPIC + EOI, 4, 0)]


def ioapic_step(chance):
    """Program pin 4, to which the UART is wired, or read it; or let the UART interrupt.

    QEMU takes a line that is raised twice for two edges, and does not see that a line is high already when its pin
    becomes a level, so that the pin is a level all the time. It sets remote IRR even when no APIC accepts the message,
    so that the destination is right.
    """
    index = 0x10 + 2 * 4 + chance.randrange(2)
    destination = 0xFF000000 if index % 2 else 0
    entry = 0x8000 | chance.choice((0, 0x10000)) | chance.choice((0, 0x100)) | chance.choice(VECTORS)
    return chance.choice(
        (
            [("store", IOAPIC, 4, index), ("load", IOAPIC + 0x10, 4)],
            [("store", IOAPIC, 4, index), ("store", IOAPIC + 0x10, 4, destination or entry)],
            [("out", UART_IER, 1, chance.choice((0, 2)))],
            [("out", 0x3F8, 1, 0x55)],
            [("in", 0x3FA, 1)],
            [("out", 0x21, 1, chance.choice((0xFF, 0xEF)))],
            [("out", 0x20, 1, 0x64)],
        )
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_pins", [False, True], ids=["lapic", "ioapic"])
def test_the_interrupt_controllers(seed, with_pins, tmp_path):
    chance = random.Random(seed)
    steps = [*STOP_TIMER, ("out", 0x21, 1, 0xFF), ("out", 0xA1, 1, 0xFF), ("out", 0x3FA, 1, 1), ("out", UART_MCR, 1, 8)]
    steps += [("out", UART_IER, 1, 0), ("store", IOAPIC, 4, 0x19), ("store", IOAPIC + 0x10, 4, 0xFF000000)]
    # Requests that came before: forget them by initializing the 8259As.
    words = ((0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0xFF))
    steps += [("out", port, 1, word) for port, word in words]
    steps += [("store", LAPIC + LDR, 4, 0x01000000)]
    steps += [("store", IOAPIC, 4, 0x18), ("store", IOAPIC + 0x10, 4, 0x18031)]
    while len(steps) < 1500:
        if with_pins and chance.random() < 0.5:
            steps += ioapic_step(chance)
        else:
            steps += lapic_step(chance, WITH_PINS if with_pins else LAPIC_CHOICES)
    compare(steps, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_the_entries_of_the_io_apic(seed, tmp_path):
    chance = random.Random(seed)
    steps = []
    for _ in range(800):
        index = chance.choice((0, 1, 2, 0x0F, *range(0x10, 0x42)))
        steps.append(("store", IOAPIC, 4, index))
        is_low = index % 2 == 0 and index >= 0x10
        value = 0x10000 | chance.getrandbits(17) if is_low else chance.getrandbits(8) << 24
        steps += [("store", IOAPIC + 0x10, 4, value)] if chance.random() < 0.5 else []
        steps += [("load", IOAPIC + 0x10, 4), ("load", IOAPIC, 4)]
    compare(steps, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_configuration_space(seed, tmp_path):
    # Accesses of other sizes to the address go elsewhere, and its reserved bits are 0. QEMU lets more registers be
    # written than have a meaning here.
    chance = random.Random(seed)
    steps = []
    for _ in range(600):
        device, register = chance.choice((0, 0, 1, 1, 2)), chance.randrange(64) * 4
        size = chance.choice((1, 2, 4))
        port = 0xCFC + chance.randrange(0, 4, size)
        steps.append(("out", 0xCF8, 4, chance.choice((0x80000000, 0x80000000, 0)) | device << 11 | register))
        if register in {0, 8, 0x10, 0x14, 0x2C} or (device == 1 and register == 0x60):
            steps.append(("out", port, size, chance.getrandbits(8 * size) & 0x8F8F8F8F))
        steps += [("in", port, size), ("in", 0xCF8, 4)]
    compare(steps, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_the_keyboard_controller(seed, tmp_path):
    # Nothing is sent to keyboard and mouse, which QEMU has, and A20 stays on. QEMU keeps answers in a queue: each one
    # is read at once. Its system flag never falls.
    chance = random.Random(seed)
    steps = [("out", 0x64, 1, 0xAA), ("in", 0x60, 1)]
    for _ in range(500):
        command = chance.choice((0x20, 0x60, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAD, 0xAE, 0xC0, 0xD0, 0xD2, 0xD3))
        steps.append(("out", 0x64, 1, command))
        if command == 0x60:
            steps.append(("out", 0x60, 1, chance.choice((0x04, 0x65, 0x47, 0x74))))
        if command in {0xD2, 0xD3}:
            steps += [("in", 0x64, 1), ("out", 0x60, 1, chance.getrandbits(8))]
        steps.append(("in", 0x64, 1))
        if command in {0x20, 0xA9, 0xAA, 0xAB, 0xC0, 0xD0, 0xD2, 0xD3}:
            steps += [("in", 0x60, 1), ("in", 0x64, 1)]
    compare(steps, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_cmos_ram_while_the_time_is_set(seed, tmp_path):
    # The time is another one, and QEMU sets the periodic flag only where it interrupts.
    chance = random.Random(seed)
    steps = [("out", 0x70, 1, 0x0B), ("out", 0x71, 1, 0x82)]
    for index in (*range(10), 0x32):
        steps += [("out", 0x70, 1, index), ("out", 0x71, 1, 0x05)]
    for _ in range(600):
        index = chance.choice([*range(10), 0x0A, 0x0B, 0x0D, 0x32, *range(0x40, 0x60)])
        value = chance.getrandbits(8)
        if index == 0x0A:
            value = 0x20 | value & 0x8F
        elif index == 0x0B:
            value = 0x80 | value & 0x1F
        steps.append(("out", 0x70, 1, index))
        steps += [("out", 0x71, 1, value)] if chance.random() < 0.5 else []
        steps += [("in", 0x71, 1), ("in", 0x70, 1)]
    compare(steps, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_the_event_timer_while_it_is_halted(seed, tmp_path):
    # QEMU stores a route and a message enable that it does not offer, keeps the bit that should read as 0, and takes
    # no upper halves of 32-bit comparators apart.
    chance = random.Random(seed)
    steps = []
    for _ in range(500):
        timer = chance.randrange(3) * 0x20
        offset = chance.choice((0x10, 0x20, 0xF0, 0xF4, 0x100 + timer, 0x108 + timer, 0x10C + timer))
        value = chance.getrandbits(32)
        if offset == 0x10:
            value = 0
        elif offset % 0x20 == 0 and offset >= 0x100:
            value = chance.choice((0, 2 << 9)) | chance.choice((0, 2, 4, 8, 12))
        steps += [("store", HPET + offset, 4, value)] if chance.random() < 0.6 else []
        steps.append(("load", HPET + offset, 4))
    compare(steps, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_power_management(seed, tmp_path):
    # Neither the time nor what it did to the status is compared.
    chance = random.Random(seed)
    steps = []
    for _ in range(300):
        write = chance.choice(
            (
                ("out", 0xB2, 1, chance.choice((0xF0, 0xF1))),
                ("out", 0xB3, 1, chance.getrandbits(8)),
                ("out", 0x602, 2, chance.getrandbits(16) & 0x0521),
                ("out", 0x604, 2, chance.choice((0, 1, 0x1C00, 0x0402))),
            )
        )
        steps += [write, ("in", 0x602, 2), ("in", 0x604, 2), ("in", 0xB3, 1), ("in", 0xB2, 1)]
    compare(steps, tmp_path)
