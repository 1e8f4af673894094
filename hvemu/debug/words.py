"""A VM exit in words: what the guest did, and what made that leave it (SDM 3D "VMX Basic Exit Reasons")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from hvemu.bits import Register
from hvemu.debug.ports import CONSOLES, port_name
from hvemu.vmx.controls import PrimaryProcessorBased
from hvemu.vmx.cr_access import SHADOWED
from hvemu.vmx.exit import VmExit
from hvemu.vmx.fields import Field
from hvemu.vmx.intercepts import UNCONDITIONAL
from hvemu.vmx.reasons import (
    CrAccess,
    DrAccess,
    EntryFailure,
    EptViolation,
    EventType,
    IdtVectoring,
    Interruption,
    IoInstruction,
    Reason,
    TaskSwitch,
)
from hvemu.x86.msrs import ROWS
from hvemu.x86.registers import Cr0, Cr4, Gpr
from hvemu.x86.segments import truncate
from hvemu.x86.state import code_size
from hvemu.x86.vectors import FACTS, PageFaultCode, Vector

if TYPE_CHECKING:
    from hvemu.debug.session import Session

Q = TypeVar("Q", bound=int)
LEFT = "so the processor left the guest."
_VECTORS = {int(vector) for vector in Vector}
_MSRS = {row.index: row.name for row in ROWS}


@dataclass(frozen=True, slots=True)
class Scene:
    """An exit and where it happened."""

    exit: VmExit
    session: Session

    @property
    def place(self) -> str:
        """The gva of the instruction, with its label."""
        return f"{self.session.here:#x}{self.session.symbols.name(self.session.here)}"

    @property
    def executes(self) -> str:
        """What the guest executes, and where."""
        instruction = self.session.instruction()
        return f"the guest executes `{instruction}` at {self.place}" if instruction else f"the guest is at {self.place}"

    def gpr(self, index: int) -> int:
        """A general-purpose register as wide as the mode has it."""
        view = self.session.view
        return truncate(view.gpr(index), 8 if code_size(view) == 64 else 4)

    def low(self, gpr: Gpr) -> int:
        """The low half of a register: ECX of RCX."""
        return truncate(self.session.view.gpr(gpr), 4)

    def field(self, field: Field) -> int:
        """A field of the VMCS; 0 under a technique that has none."""
        vmcs = self.session.vmcs
        return 0 if vmcs is None else vmcs[field]

    @property
    def primary(self) -> PrimaryProcessorBased:
        """The primary processor-based controls."""
        return PrimaryProcessorBased(self.field(Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS))


Says = Callable[[Scene], str]
WORDS: dict[Reason, Says] = {}


def says(reason: Reason, qualification: type[Q]) -> Callable[[Callable[[Scene, Q], str]], Callable[[Scene, Q], str]]:
    """Make the decorated function the words for *reason*; it receives the exit *qualification* as its type."""

    def register(text: Callable[[Scene, Q], str]) -> Callable[[Scene, Q], str]:
        WORDS[reason] = lambda scene: text(scene, qualification(scene.exit.qualification))
        return text

    return register


def explain(exit_: VmExit, session: Session) -> str:
    """Return *exit_*, in whose guest *session* stands still, as its name and one or two sentences."""
    scene = Scene(exit_, session)
    say = WORDS.get(exit_.reason) or _plainly
    during = IdtVectoring(exit_.idt_vectoring)
    met = f" It was met while the processor delivered {_event(during)}." if during.valid else ""
    return f"{exit_.what or exit_.reason.name}: {say(scene)}{met}"


# -- instructions -----------------------------------------------------------------------------------------------------

CONTROLS: dict[Reason, str] = {
    Reason.HLT: "HLT exiting",
    Reason.INVLPG: "INVLPG exiting",
    Reason.RDPMC: "RDPMC exiting",
    Reason.RDTSC: "RDTSC exiting",
    Reason.RDTSCP: "RDTSC exiting",
    Reason.MWAIT: "MWAIT exiting",
    Reason.MONITOR: "MONITOR exiting",
    Reason.PAUSE: "PAUSE exiting",
    Reason.ACCESS_TO_GDTR_OR_IDTR: "descriptor-table exiting",
    Reason.ACCESS_TO_LDTR_OR_TR: "descriptor-table exiting",
    Reason.WBINVD_OR_WBNOINVD: "WBINVD exiting",
    Reason.RDRAND: "RDRAND exiting",
    Reason.RDSEED: "RDSEED exiting",
    Reason.RSM: "the dual-monitor treatment of SMM",
    Reason.INVPCID: "INVLPG exiting",
    Reason.VMFUNC: "enable VM functions",
    Reason.ENCLS: "enable ENCLS exiting",
    Reason.ENCLV: "enable ENCLV exiting",
    Reason.XSAVES: "the XSS-exiting bitmap",
    Reason.XRSTORS: "the XSS-exiting bitmap",
    Reason.PCONFIG: "enable PCONFIG",
    Reason.UMWAIT: "RDTSC exiting",
    Reason.TPAUSE: "RDTSC exiting",
    Reason.LOADIWKEY: "LOADIWKEY exiting",
    Reason.RDMSRLIST: "enable MSR-list instructions",
    Reason.WRMSRLIST: "enable MSR-list instructions",
}
"""The VM-execution control by which a hypervisor asks for each exit."""
EVENTS: dict[Reason, str] = {
    Reason.INIT_SIGNAL: "an INIT signal arrived",
    Reason.STARTUP_IPI: "a startup IPI arrived while the processor waited for one",
    Reason.IO_SMI: "a system-management interrupt arrived right after an I/O instruction",
    Reason.OTHER_SMI: "a system-management interrupt arrived",
    Reason.NMI_WINDOW: "an NMI could be delivered now, and the hypervisor asked to be told (NMI-window exiting)",
    Reason.MONITOR_TRAP_FLAG: "one instruction is done, and the hypervisor asked to be told (monitor trap flag)",
    Reason.TPR_BELOW_THRESHOLD: "the guest's task priority fell below the TPR threshold",
    Reason.APIC_ACCESS: "the guest touched the APIC-access page",
    Reason.APIC_WRITE: "the guest wrote to its virtual APIC page, and the hypervisor must act on it",
    Reason.VIRTUALIZED_EOI: "the guest ended an interrupt that the EOI-exit bitmap names",
    Reason.VMX_PREEMPTION_TIMER_EXPIRED: "the VMX-preemption timer counted down to 0",
    Reason.PAGE_MODIFICATION_LOG_FULL: "the page-modification log is full",
    Reason.SPP_RELATED_EVENT: "the sub-page permissions of a page could not be used",
    Reason.BUS_LOCK: "an instruction locked the bus",
    Reason.INSTRUCTION_TIMEOUT: "an instruction took longer than the hypervisor allows",
    Reason.ENQCMD_PASID_TRANSLATION_FAILURE: "the PASID of an ENQCMD could not be translated",
    Reason.ENQCMDS_PASID_TRANSLATION_FAILURE: "the PASID of an ENQCMDS could not be translated",
    Reason.ENTRY_FAILURE_MSR_LOADING: "VM entry failed: an MSR of the VM-entry MSR-load area could not be loaded",
    Reason.ENTRY_FAILURE_MACHINE_CHECK: "VM entry failed: a machine check occurred",
}
"""Exits that no instruction asked for."""


def _plainly(scene: Scene) -> str:
    """Return what can be said of an exit that has nothing to decode."""
    reason = scene.exit.reason
    if reason in EVENTS:
        return f"{EVENTS[reason]}. The guest was at {scene.place}."
    if reason in CONTROLS and reason not in UNCONDITIONAL:
        return f"{scene.executes}. The hypervisor asked for this ({CONTROLS[reason]}), {LEFT}"
    return f"{scene.executes}. In VMX non-root operation this instruction always leaves the guest."


@says(Reason.CPUID, int)
def _cpuid(scene: Scene, _qualification: int) -> str:
    leaf = f"leaf {scene.low(Gpr.RAX):#x}, subleaf {scene.low(Gpr.RCX):#x}"
    return f"{scene.executes} to ask for {leaf}. In VMX non-root operation CPUID always leaves the guest."


@says(Reason.INVLPG, int)
def _invlpg(scene: Scene, gva: int) -> str:
    return f"{scene.executes} to drop the translation of gva {gva:#x}. The hypervisor set INVLPG exiting, {LEFT}"


@says(Reason.RDMSR, int)
def _rdmsr(scene: Scene, _qualification: int) -> str:
    return f"{scene.executes} to read {_msr(scene)}. {_by_bitmap(scene, 'RDMSR')}"


@says(Reason.WRMSR, int)
def _wrmsr(scene: Scene, _qualification: int) -> str:
    value = f"{scene.low(Gpr.RDX):#x}:{scene.low(Gpr.RAX):08x}"
    return f"{scene.executes} to write {value} (EDX:EAX) to {_msr(scene)}. {_by_bitmap(scene, 'WRMSR')}"


def _msr(scene: Scene) -> str:
    index = scene.low(Gpr.RCX)
    return f"MSR {index:#x}" + (f" ({_MSRS[index]})" if index in _MSRS else "")


def _by_bitmap(scene: Scene, what: str) -> str:
    if scene.primary.use_msr_bitmaps:
        return f"The hypervisor's MSR bitmaps name it, {LEFT}"
    return f"The hypervisor uses no MSR bitmaps, and without them every {what} leaves the guest."


@says(Reason.IO_INSTRUCTION, IoInstruction)
def _io(scene: Scene, q: IoInstruction) -> str:
    size = f"{q.size} byte{'s' if q.size > 1 else ''}"
    port = f"port {q.port:#x}{port_name(q.port)}"
    if q.string:
        what = f"{'store' if q.in_ else 'send'} {size} an item {'from' if q.in_ else 'to'} {port}"
    elif q.in_:
        what = f"read {size} from {port}"
    else:
        what = f"write {_value(truncate(scene.low(Gpr.RAX), q.size), q.port)}, {size}, to {port}"
    why = (
        "The hypervisor's I/O bitmaps name the port"
        if scene.primary.use_io_bitmaps
        else "The hypervisor owns all ports"
    )
    return f"{scene.executes} to {what}. {why}, {LEFT}"


def _value(value: int, port: int) -> str:
    """Return *value*, as a character too where the port takes text."""
    character = chr(value) if port in CONSOLES and value < _ASCII else ""
    return f"{value:#x}" + (f" {character!r}" if character else "")


_ASCII = 0x80


@says(Reason.MOV_DR, DrAccess)
def _mov_dr(scene: Scene, q: DrAccess) -> str:
    what = f"read DR{q.dr}" if q.from_dr else f"write {scene.gpr(q.gpr):#x} to DR{q.dr}"
    return f"{scene.executes} to {what}. The hypervisor set MOV-DR exiting, {LEFT}"


# -- control registers ------------------------------------------------------------------------------------------------

_CR_KINDS: dict[int, type[Register]] = {0: Cr0, 4: Cr4}


@says(Reason.CR_ACCESS, CrAccess)
def _cr_access(scene: Scene, q: CrAccess) -> str:
    if q.kind is CrAccess.Kind.MOV_FROM_CR:
        return f"{scene.executes} to read CR{q.cr}. The hypervisor set CR{q.cr}-store exiting, {LEFT}"
    if q.kind is CrAccess.Kind.CLTS:
        return f"{scene.executes} to clear CR0.TS. The hypervisor owns CR0.TS and shows it as 1, {LEFT}"
    value = q.lmsw_source if q.kind is CrAccess.Kind.LMSW else scene.gpr(q.gpr)
    what = f"{scene.executes} to write {value:#x} to CR{q.cr}"
    if q.cr not in SHADOWED:
        return f"{what}. The hypervisor set CR{q.cr}-load exiting, {LEFT}"
    owned = _owned(scene, q.cr, value, lmsw=q.kind is CrAccess.Kind.LMSW)
    return f"{what}. The hypervisor owns {' and '.join(owned)}, {LEFT}"


def _owned(scene: Scene, cr: int, value: int, *, lmsw: bool) -> list[str]:
    """Return the bits that the host owns and the guest would see change."""
    mask, shadow = scene.field(SHADOWED[cr].mask), scene.field(SHADOWED[cr].shadow)
    changed = _CR_KINDS[cr]((value ^ shadow) & mask)
    writes = {"pe", "mp", "em", "ts"} if lmsw else set(changed.fields)
    named = [f"CR{cr}.{name.upper()}" for name in changed.fields if getattr(changed, name) and name in writes]
    return named or [f"bits {int(changed):#x} of CR{cr}"]


# -- events -----------------------------------------------------------------------------------------------------------


def _event(event: Interruption | IdtVectoring) -> str:
    """Return what was delivered: the name of a vector that has one."""
    name = f"#{Vector(event.vector).name}" if event.vector in _VECTORS else f"vector {event.vector:#x}"
    match event.type:
        case EventType.EXTERNAL_INTERRUPT:
            return f"an external interrupt, vector {event.vector:#x}"
        case EventType.NMI:
            return "an NMI"
        case EventType.SOFTWARE_INTERRUPT:
            return f"INT {event.vector:#x}"
        case _:
            return f"{name} ({FACTS[Vector(event.vector)].title})" if event.vector in _VECTORS else name


@says(Reason.EXCEPTION_OR_NMI, int)
def _exception(scene: Scene, qualification: int) -> str:
    information = Interruption(scene.exit.interruption_information)
    if information.type is EventType.NMI:
        return f"an NMI arrived while the guest was at {scene.place}. The hypervisor set NMI exiting, {LEFT}"
    code = f", error code {scene.exit.error_code:#x}" if information.error_code_valid else ""
    if information.vector == Vector.PF and information.type is EventType.HARDWARE_EXCEPTION:
        code = f" at gva {qualification:#x}, error code {_page_fault(scene.exit.error_code)}"
    if scene.session.vmcs is None:
        why = "The processor's IDT is the monitor's, so every exception and software interrupt reaches the monitor."
    else:
        why = f"The exception bitmap names vector {information.vector}, {LEFT}"
    return f"{scene.executes}{_ring(scene)}: {_event(information)}{code}. {why}"


def _ring(scene: Scene) -> str:
    """Return in which ring a guest is that believes to be in another one."""
    believed, true = scene.session.view.cpl, scene.session.truth.cpl
    return f" in ring {true}, which it takes for ring {believed}" if true != believed else ""


def _page_fault(error_code: int) -> str:
    """Return the bits of the error code of a #PF (SDM 3A "Page-Fault Exceptions")."""
    code = PageFaultCode(error_code)
    parts = [
        "user" if code.us else "supervisor",
        "fetch" if code.id else "write" if code.wr else "read",
        "reserved bit set" if code.rsvd else "not allowed" if code.p else "not present",
    ]
    return f"{error_code:#x} ({', '.join(parts)})"


@says(Reason.EXTERNAL_INTERRUPT, int)
def _external_interrupt(scene: Scene, _qualification: int) -> str:
    information = Interruption(scene.exit.interruption_information)
    vector = f", vector {information.vector:#x}," if information.valid else ""
    if scene.session.vmcs is None:
        why = "The processor's IDT is the monitor's, which owns the machine's timer."
    else:
        why = f"The hypervisor set external-interrupt exiting, {LEFT}"
    return f"an interrupt of the host{vector} arrived while the guest was at {scene.place}. {why}"


@says(Reason.INTERRUPT_WINDOW, int)
def _interrupt_window(scene: Scene, _qualification: int) -> str:
    return (
        f"the guest at {scene.place} can take an interrupt now: IF is 1 and nothing blocks it. The hypervisor has one "
        f"to inject and asked to be told (interrupt-window exiting), {LEFT}"
    )


@says(Reason.TRIPLE_FAULT, int)
def _triple_fault(scene: Scene, _qualification: int) -> str:
    chain = f" ({scene.exit.detail.removeprefix('triple fault: ')})" if scene.exit.detail else ""
    return (
        f"an exception in the guest could not be delivered, nor could the double fault that followed{chain}. The guest "
        f"was at {scene.place}; a real processor would shut down."
    )


@says(Reason.TASK_SWITCH, TaskSwitch)
def _task_switch(scene: Scene, q: TaskSwitch) -> str:
    by = {TaskSwitch.Source.TASK_GATE_IN_IDT: "a task gate in the IDT"}.get(q.source, q.source.name)
    return f"{scene.executes}: a task switch by {by} to the TSS {q.selector:#x}. Task switches always leave the guest."


@says(Reason.ENTRY_FAILURE_GUEST_STATE, int)
def _entry_failure(_scene: Scene, qualification: int) -> str:
    known = qualification in set(EntryFailure)
    why = f" ({EntryFailure(qualification).name})" if known and qualification else ""
    return f"VM entry failed: the guest state in the VMCS breaks a rule{why}. The guest has not run."


# -- memory -----------------------------------------------------------------------------------------------------------


@says(Reason.EPT_VIOLATION, EptViolation)
def _ept_violation(scene: Scene, q: EptViolation) -> str:
    gpa = scene.exit.guest_physical or 0
    kind = "write to" if q.write else "read"
    where = f"gpa {gpa:#x}"
    if q.linear_valid:
        gva = f"{scene.exit.guest_linear:#x}"
        where += f", which is gva {gva}" if q.linear_is_gpa else f", in the page tables that translate gva {gva}"
    what = f"{scene.executes}, which has to {kind} {where}"
    if q.fetch:
        what = f"the guest fetches the instruction at {scene.place}, from {where}"
    rights = [name for name in ("readable", "writable", "executable") if getattr(q, name)]
    ept = f"EPT makes that page {' and '.join(rights)} only" if rights else "EPT maps nothing there"
    return f"{what}. {ept}, {LEFT}"


@says(Reason.EPT_MISCONFIGURATION, int)
def _ept_misconfiguration(scene: Scene, _qualification: int) -> str:
    gpa = scene.exit.guest_physical or 0
    rule = " ".join(scene.exit.detail.split())
    text = f"{scene.executes}, and EPT has an entry that is not legal on the way from gpa {gpa:#x}."
    return f"{text} {rule.removesuffix('.')}." if rule else text
