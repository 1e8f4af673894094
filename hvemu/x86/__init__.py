"""Facts about x86: names, bits and tables. No state, no engine."""
