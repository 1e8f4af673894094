"""Ports 0x92 and 0xcf9."""

from __future__ import annotations

import pytest

from hvemu.devices.reset import ResetControl, SystemControl


@pytest.fixture
def resets():
    return []


def counter(resets):
    return lambda: resets.append(1)


@pytest.mark.parametrize("old", range(4))
@pytest.mark.parametrize("new", range(4))
def test_port_a_drives_a20_and_resets_when_its_bit_rises(resets, old, new):
    levels = []
    port = SystemControl(a20=levels.append, reset=counter(resets))
    port.write(0, 1, old)
    twin = SystemControl.from_state(port.state(), a20=levels.append, reset=counter(resets))
    resets.clear()
    levels.clear()
    twin.write(0, 1, new)
    assert levels == [bool(new & 2)]
    assert bool(resets) == (bool(new & 1) and not old & 1)
    assert twin.read(0, 1) == new


def test_firmware_leaves_the_gate_open(resets):
    assert SystemControl.as_firmware_leaves_it(a20=print, reset=counter(resets)).read(0, 1) == 2


@pytest.mark.parametrize("value", range(256))
def test_the_reset_control_keeps_the_kind_of_reset(resets, value):
    control = ResetControl(reset=counter(resets))
    control.write(0, 1, value)
    assert len(resets) == bool(value & 4)
    assert ResetControl.from_state(control.state(), reset=counter(resets)).read(0, 1) == value & 2
