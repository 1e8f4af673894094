"""A processor whose IDT belongs to the monitor: everything that uses the IDT arrives, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hvemu.cpu.deliver import Event, Source
from hvemu.engine.traps import Kind, Stop
from hvemu.techniques.host_timer import VECTOR, HostTimer
from hvemu.techniques.monitored import Monitored
from hvemu.vmx.exit import VmExit
from hvemu.vmx.reasons import Reason
from hvemu.x86.vectors import Fault, Vector

VALID, HAS_CODE = 1 << 31, 1 << 11


def monitored(rip=0x1000):
    timer = HostTimer()
    cpu = SimpleNamespace(state=SimpleNamespace(rip=rip), interrupts=timer)
    return Monitored(cpu), timer


# event, information, error code, CR2, length
EVENTS = [
    (Event.exception(Fault(Vector.GP, 0x28), 0x1000), VALID | HAS_CODE | 3 << 8 | 13, 0x28, 0, 0),
    (Event.exception(Fault(Vector.PF, 2, cr2=0x5000), 0x1000), VALID | HAS_CODE | 3 << 8 | 14, 2, 0x5000, 0),
    (Event.exception(Fault(Vector.UD), 0x1000), VALID | 3 << 8 | 6, 0, 0, 0),
    (Event(0x80, Source.SOFTWARE_INT, None, 0x1002), VALID | 4 << 8 | 0x80, 0, 0, 2),
    (Event(3, Source.SOFTWARE_EXCEPTION, None, 0x1001), VALID | 6 << 8 | 3, 0, 0, 1),
    (Event(1, Source.PRIVILEGED, None, 0x1001), VALID | 5 << 8 | 1, 0, 0, 1),
]


@pytest.mark.parametrize(("event", "information", "code", "cr2", "length"), EVENTS)
def test_an_event_says_what_the_processor_pushes(event, information, code, cr2, length):
    interception, _ = monitored()
    assert interception.event(event, None) == VmExit(Reason.EXCEPTION_OR_NMI, cr2, length, information, code)


@pytest.mark.parametrize("kind", Kind)
def test_no_instruction_is_intercepted(kind):
    interception, _ = monitored()
    assert interception.instruction(Stop(kind)) is None
    assert not interception.wants_window
    assert not interception.wants_nmi_window


def test_the_hosts_timer_interrupts_once():
    interception, timer = monitored()
    assert not timer.pending()
    timer.fire()
    assert timer.pending()
    assert interception.interrupt() == VmExit(Reason.EXTERNAL_INTERRUPT, interruption_information=VALID | VECTOR)
    assert not timer.pending()


def test_what_cannot_happen_to_a_monitor_is_an_internal_error():
    interception, _ = monitored()
    event = Event.exception(Fault(Vector.UD), 0x1000)
    for impossible in (
        lambda: interception.event(event, event),
        lambda: interception.second_level(Stop(Kind.SECOND_LEVEL)),
        lambda: interception.triple_fault("#UD"),
    ):
        with pytest.raises(AssertionError):
            impossible()
