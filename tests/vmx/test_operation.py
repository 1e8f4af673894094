"""VMX operation: pointers, revision identifiers and launch states, with the error number that the manual gives each."""

from __future__ import annotations

import pytest

from hvemu.memory.physical import Ram
from hvemu.vmx.capabilities import REVISION_ID
from hvemu.vmx.fail import VmFail
from hvemu.vmx.fields import Field
from hvemu.vmx.operation import NO_VMCS, VmxOperation, check_invept, check_invvpid, fail, succeed

VMXON, A, B = 0x1000, 0x2000, 0x3000
CF, ZF, OTHERS = 0x001, 0x040, 0x894  # OF SF AF PF


@pytest.fixture
def operation():
    memory = Ram(bytearray(0x8000))
    for pointer in (VMXON, A, B):
        memory.write(pointer, 4, REVISION_ID)
    made = VmxOperation(memory)
    made.enter(VMXON)
    return made


def number(action, *arguments):
    with pytest.raises(VmFail) as caught:
        action(*arguments)
    return caught.value.number


@pytest.mark.parametrize(
    "pointer", [0x1001, 0x1800, 1 << 40, 0x4000], ids=["odd", "half a page", "too high", "revision"]
)
def test_vmxon_fails_without_a_number_for_a_bad_pointer(pointer):
    memory = Ram(bytearray(0x8000))
    memory.write(0x1000, 4, REVISION_ID)
    made = VmxOperation(memory)
    assert number(made.enter, pointer) is None
    assert not made.on


def test_vmxon_in_root_operation_is_error_15(operation):
    assert number(operation.enter, VMXON) == 15


@pytest.mark.parametrize(
    ("name", "pointer", "error"),
    [
        ("clear", A + 8, 2), ("clear", 1 << 40, 2), ("clear", VMXON, 3),
        ("load", A + 8, 9), ("load", 1 << 40, 9), ("load", VMXON, 10), ("load", 0x4000, 11),
    ],
)  # fmt: skip
def test_a_bad_pointer_has_its_error_number(operation, name, pointer, error):
    assert number(getattr(operation, name), pointer) == error


def test_without_a_current_vmcs_instructions_fail_invalid(operation):
    assert operation.current == NO_VMCS
    with pytest.raises(VmFail) as caught:
        _ = operation.vmcs
    assert caught.value.number is None


def test_vmptrld_makes_current_and_vmclear_makes_not_current(operation):
    operation.clear(A)
    operation.load(A)
    assert operation.current == A
    operation.clear(B)
    assert operation.current == A
    operation.clear(A)
    assert operation.current == NO_VMCS


def test_fields_survive_vmclear_and_the_launch_state_does_not(operation):
    operation.load(A)
    operation.vmcs.vmwrite(Field.GUEST_RIP, 0x1234)
    operation.vmcs.launched = True
    operation.load(B)
    operation.load(A)
    assert operation.vmcs.launched
    operation.clear(A)
    operation.load(A)
    assert operation.vmcs.vmread(Field.GUEST_RIP) == 0x1234
    assert not operation.vmcs.launched


def test_two_vmcs_keep_their_fields_apart(operation):
    for pointer, value in ((A, 1), (B, 2)):
        operation.load(pointer)
        operation.vmcs.vmwrite(Field.GUEST_RSP, value)
    operation.load(A)
    assert operation.vmcs.vmread(Field.GUEST_RSP) == 1


def test_vmxoff_ends_operation(operation):
    operation.load(A)
    operation.leave()
    assert not operation.on
    assert operation.current == NO_VMCS


EPTP = 0x5000 | 3 << 3 | 6


@pytest.mark.parametrize(
    ("kind", "descriptor", "error"),
    [
        (1, EPTP, None), (2, 0, None), (0, EPTP, 28), (3, EPTP, 28), (1, EPTP | 1 << 8, 28), (1, EPTP | 7, 28),
        (2, EPTP | 7, None),
    ],
)  # fmt: skip
def test_invept_takes_two_types_and_an_eptp_that_vm_entry_takes(kind, descriptor, error):
    if error is None:
        check_invept(kind, descriptor)
    else:
        assert number(check_invept, kind, descriptor) == error


@pytest.mark.parametrize(
    ("kind", "descriptor", "error"),
    [
        (0, 1 | 0x7FFF_FFFF_FFFF << 64, None), (0, 1 | 1 << 63 + 64, 28), (0, 0, 28), (0, 1 | 1 << 16, 28),
        (1, 1, None), (1, 0, 28), (1, 1 | 1 << 63 + 64, None), (2, 0, None), (2, 1 << 63, 28), (3, 1, None), (3, 0, 28),
        (4, 1, 28),
    ],
)  # fmt: skip
def test_invvpid_takes_four_types_and_a_clean_descriptor(kind, descriptor, error):
    if error is None:
        check_invvpid(kind, descriptor)
    else:
        assert number(check_invvpid, kind, descriptor) == error


def test_the_flags_say_how_an_instruction_ended(operation):
    operation.load(A)
    everything = CF | ZF | OTHERS | 2
    assert succeed(everything) == 2
    assert fail(everything, None, VmFail(None)) == CF | 2
    assert fail(everything, None, VmFail(5)) == CF | 2  # no current VMCS to hold a number
    assert fail(everything, operation.vmcs, VmFail(5)) == ZF | 2
    assert operation.vmcs.vmread(Field.VM_INSTRUCTION_ERROR) == 5
