"""Name the exits of a kernel: what it does that its hypervisor has to know of."""

from hvemu import Machine, load, technique_for

for technique in ("deprivilege", "hardware"):
    result = Machine(load("wp"), technique_for(technique, None)).run()
    print(f"{technique}: {result.exits} exits")
    for name, count in sorted(result.by_reason.items(), key=lambda item: -item[1]):
        print(f"{count:7} {name}")
