"""hvemu: learn, teach and test how hypervisors work."""

__all__: list[str] = []
