"""The ways to virtualize x86: one narrow interface, one run loop, one file per technique."""
