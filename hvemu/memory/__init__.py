"""Address translation on plain data: guest page tables, shadows of them, and the second level."""
