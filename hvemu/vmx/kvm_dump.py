"""The VMCS as Linux KVM prints it to the kernel log when VM entry fails (kvm_intel.dump_invalid_vmcs=1).

The formats below are those of dump_vmcs() in arch/x86/kvm/vmx/vmx.c, of old and of new kernels: text as it is printed,
and in braces the field and the fewest hexadecimal digits of its value. A line may have anything before it: time stamps,
host names, "kvm_intel:".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hvemu.errors import InputError
from hvemu.vmx.fields import MASKS, Field
from hvemu.vmx.msr_load import MsrEntry

_SEGMENTS = ("CS", "DS", "SS", "ES", "FS", "GS", "LDTR", "TR")
_SEGMENT = (
    "{register}: sel={{GUEST_{register}_SELECTOR:4}}, attr={{GUEST_{register}_ACCESS_RIGHTS:5}}, "
    "limit={{GUEST_{register}_LIMIT:8}}, base={{GUEST_{register}_BASE:16}}"
)
_TABLE = "{register}: limit={{GUEST_{register}_LIMIT:8}}, base={{GUEST_{register}_BASE:16}}"
_ALWAYS: dict[str, tuple[str, ...]] = {
    "Guest State": (
        "CR0: actual={GUEST_CR0:16}, shadow={CR0_READ_SHADOW:16}, gh_mask={CR0_GUEST_HOST_MASK:16}",
        "CR4: actual={GUEST_CR4:16}, shadow={CR4_READ_SHADOW:16}, gh_mask={CR4_GUEST_HOST_MASK:16}",
        "CR3 = {GUEST_CR3:16}",
        "RSP = {GUEST_RSP:16}  RIP = {GUEST_RIP:16}",
        "RFLAGS={GUEST_RFLAGS:8}         DR7 = {GUEST_DR7:16}",
        "Sysenter RSP={GUEST_IA32_SYSENTER_ESP:16} CS:RIP={GUEST_IA32_SYSENTER_CS:4}:{GUEST_IA32_SYSENTER_EIP:16}",
        *(_SEGMENT.format(register=register) for register in _SEGMENTS),
        *(_TABLE.format(register=register) for register in ("GDTR", "IDTR")),
        "DebugCtl = {GUEST_IA32_DEBUGCTL:16}  DebugExceptions = {GUEST_PENDING_DEBUG_EXCEPTIONS:16}",
        "Interruptibility = {GUEST_INTERRUPTIBILITY_STATE:8}  ActivityState = {GUEST_ACTIVITY_STATE:8}",
    ),
    "Host State": (
        "RIP = {HOST_RIP:16}  RSP = {HOST_RSP:16}",
        (
            "CS={HOST_CS_SELECTOR:4} SS={HOST_SS_SELECTOR:4} DS={HOST_DS_SELECTOR:4} ES={HOST_ES_SELECTOR:4} "
            "FS={HOST_FS_SELECTOR:4} GS={HOST_GS_SELECTOR:4} TR={HOST_TR_SELECTOR:4}"
        ),
        "FSBase={HOST_FS_BASE:16} GSBase={HOST_GS_BASE:16} TRBase={HOST_TR_BASE:16}",
        "GDTBase={HOST_GDTR_BASE:16} IDTBase={HOST_IDTR_BASE:16}",
        "CR0={HOST_CR0:16} CR3={HOST_CR3:16} CR4={HOST_CR4:16}",
        "Sysenter RSP={HOST_IA32_SYSENTER_ESP:16} CS:RIP={HOST_IA32_SYSENTER_CS:4}:{HOST_IA32_SYSENTER_EIP:16}",
    ),
    "Control State": (
        (
            "CPUBased={PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS:8} "
            "SecondaryExec={SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS:8}"
        ),
        (
            "PinBased={PIN_BASED_VM_EXECUTION_CONTROLS:8} EntryControls={VM_ENTRY_CONTROLS:8} "
            "ExitControls={VM_EXIT_CONTROLS:8}"
        ),
        (
            "ExceptionBitmap={EXCEPTION_BITMAP:8} PFECmask={PAGE_FAULT_ERROR_CODE_MASK:8} "
            "PFECmatch={PAGE_FAULT_ERROR_CODE_MATCH:8}"
        ),
        (
            "VMEntry: intr_info={VM_ENTRY_INTERRUPTION_INFORMATION:8} errcode={VM_ENTRY_EXCEPTION_ERROR_CODE:8} "
            "ilen={VM_ENTRY_INSTRUCTION_LENGTH:8}"
        ),
        (
            "VMExit: intr_info={VM_EXIT_INTERRUPTION_INFORMATION:8} errcode={VM_EXIT_INTERRUPTION_ERROR_CODE:8} "
            "ilen={VM_EXIT_INSTRUCTION_LENGTH:8}"
        ),
        "reason={VM_EXIT_REASON:8} qualification={EXIT_QUALIFICATION:16}",
        "IDTVectoring: info={IDT_VECTORING_INFORMATION:8} errcode={IDT_VECTORING_ERROR_CODE:8}",
        "TSC Offset = {TSC_OFFSET:16}",
    ),
}
"""The lines that every dump has, by the part under whose heading they stand."""
_SOMETIMES: dict[str, tuple[str, ...]] = {
    "Guest State": (
        "PDPTR0 = {GUEST_PDPTE0:16}  PDPTR1 = {GUEST_PDPTE1:16}",
        "PDPTR2 = {GUEST_PDPTE2:16}  PDPTR3 = {GUEST_PDPTE3:16}",
        "EFER= {GUEST_IA32_EFER:16}",
        "PAT = {GUEST_IA32_PAT:16}",
        "PerfGlobCtl = {GUEST_IA32_PERF_GLOBAL_CTRL:16}",
        "BndCfgS = {GUEST_IA32_BNDCFGS:16}",
        "InterruptStatus = {GUEST_INTERRUPT_STATUS:4}",
        "S_CET = {GUEST_IA32_S_CET:16}, SSP = {GUEST_SSP:16}, SSP TABLE = {GUEST_IA32_INTERRUPT_SSP_TABLE_ADDRESS:16}",
    ),
    "Host State": (
        "EFER= {HOST_IA32_EFER:16}",
        "PAT = {HOST_IA32_PAT:16}",
        "PerfGlobCtl = {HOST_IA32_PERF_GLOBAL_CTRL:16}",
        "S_CET = {HOST_IA32_S_CET:16}, SSP = {HOST_SSP:16}, SSP TABLE = {HOST_IA32_INTERRUPT_SSP_TABLE_ADDRESS:16}",
    ),
    "Control State": (
        "TertiaryExec={TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS:16}",
        "TSC Multiplier = {TSC_MULTIPLIER:16}",
        "TPR Threshold = {TPR_THRESHOLD:2}",
        "APIC-access addr = {APIC_ACCESS_ADDRESS:16}",
        "virt-APIC addr = {VIRTUAL_APIC_ADDRESS:16}",
        "PostedIntrVec = {POSTED_INTERRUPT_NOTIFICATION_VECTOR:2}",
        "EPT pointer = {EPT_POINTER:16}",
        "PLE Gap={PLE_GAP:8} Window={PLE_WINDOW:8}",
        "Virtual processor ID = {VPID:4}",
    ),
}
_PART = re.compile(r"\*\*\* (Guest State|Host State|Control State) \*\*\*")
_VALUE = re.compile(r"\{(?P<field>\w+):(?P<digits>\d+)\}")
_AREA = re.compile(r"MSR (?P<name>guest autoload|host autoload|autostore):")
_MSR = re.compile(r"\d+: msr=0x(?P<index>[0-9a-f]{8}) value=0x(?P<value>[0-9a-f]{16})")
_COUNTS = {
    "guest autoload": Field.VM_ENTRY_MSR_LOAD_COUNT,
    "host autoload": Field.VM_EXIT_MSR_LOAD_COUNT,
    "autostore": Field.VM_EXIT_MSR_STORE_COUNT,
}
_START = "*** Guest State ***"


@dataclass(frozen=True, slots=True)
class _Line:
    """One format: its regular expression, the fields of the groups, and the first words of it."""

    pattern: re.Pattern[str]
    fields: tuple[Field, ...]
    start: str


@dataclass(slots=True)
class Dump:
    """What a dump says: fields, and the MSRs that VM entry loads. *number* of *count* dumps in the log."""

    values: dict[Field, int] = field(default_factory=dict)
    area: list[MsrEntry] = field(default_factory=list)
    number: int = 1
    count: int = 1


def _line(text: str) -> _Line:
    names, pattern, end = [], "", 0
    for match in _VALUE.finditer(text):
        names.append(Field[match["field"]])
        pattern += _literal(text[end : match.start()]) + rf"(?:0x)?([0-9a-f]{{{match['digits']},16}})(?![0-9a-f])"
        end = match.end()
    return _Line(re.compile(rf"(?<!\w){pattern}"), tuple(names), text.partition("{")[0].strip(" ="))


def _literal(text: str) -> str:
    return r"\s*".join(map(re.escape, re.split(r"\s+", text.replace("=", " = ").replace(":", ": "))))


ALWAYS = {part: [*map(_line, texts)] for part, texts in _ALWAYS.items()}
SOMETIMES = {part: [*map(_line, texts)] for part, texts in _SOMETIMES.items()}


def is_dump(text: str) -> bool:
    """Whether *text* looks like a log with a dump, whole or not."""
    return _PART.search(text) is not None


def parse(text: str) -> Dump:
    """Return the last whole dump in *text*. Raises InputError if there is none."""
    starts = [match.start() for match in re.finditer(re.escape(_START), text)]
    if not starts:
        raise InputError(f'the dump is not whole: its heading "{_START}" is missing')
    failure: InputError | None = None
    for number in range(len(starts), 0, -1):
        try:
            dump = _parse(text[starts[number - 1] : starts[number] if number < len(starts) else None])
        except InputError as error:
            failure = failure or error
        else:
            dump.number, dump.count = number, len(starts)
            return dump
    assert failure is not None
    raise failure


def _parse(text: str) -> Dump:
    dump, part, area = Dump(), "", ""
    for line in text.splitlines():
        heading = _PART.search(line)
        if heading:
            part, area = heading[1], ""
        elif not part:
            continue
        elif found := _AREA.search(line):
            area = found["name"]
        elif area and (entry := _MSR.search(line)):
            _take_msr(dump, area, MsrEntry(index=int(entry["index"], 16), data=int(entry["value"], 16)))
        else:
            _take(dump, (*ALWAYS[part], *SOMETIMES[part]), line)
    for message in _missing(dump):
        raise InputError(message)
    return dump


def _take(dump: Dump, formats: tuple[_Line, ...], line: str) -> None:
    for form in formats:
        match = form.pattern.search(line)
        for name, digits in zip(form.fields, match.groups(), strict=True) if match else ():
            value = int(digits, 16)
            if value & ~MASKS[name]:
                raise InputError(f"{name.name}: {value:#x} does not fit into its {name.width.bits} bits")
            dump.values[name] = value


def _take_msr(dump: Dump, area: str, entry: MsrEntry) -> None:
    dump.values[_COUNTS[area]] = dump.values.get(_COUNTS[area], 0) + 1
    if area == "guest autoload":
        dump.area.append(entry)


def _missing(dump: Dump) -> Iterator[str]:
    for part, formats in ALWAYS.items():
        for form in formats:
            if form.fields[0] not in dump.values:
                yield f'the dump is not whole: its line "{form.start} ..." under "*** {part} ***" is missing or cut'
