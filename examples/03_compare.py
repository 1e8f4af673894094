"""Run one kernel under every pair of technique and memory, and find out whether it can tell the difference."""

from hvemu import PAIRS, Machine, load, technique_for

for guest in ("paging", "popf"):
    image = load(guest)
    results = {pair: Machine(image, technique_for(*pair)).run() for pair in PAIRS}
    reference = results["bare", "none"]
    print(guest)
    for (technique, memory), result in results.items():
        same = result.console == reference.console
        print(f"  {technique}+{memory}: {result.exits} exits, sees {'the same' if same else 'something else'}")
