"""Run a guest kernel and print its console."""

from hvemu import Machine, load, technique_for

image = load("hello32")  # a name from guests/guests.toml; the path of a kernel of your own will do as well
machine = Machine(image, technique_for("hardware", "ept"))
result = machine.run()

print(result.console.decode(), end="")
print(f"{machine}: {result.ending.how.value} with code {result.ending.code}")
print(f"{result.instructions} instructions, {result.exits} VM exits")
