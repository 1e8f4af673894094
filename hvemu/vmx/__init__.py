"""VT-x as functions over a VMCS and a processor's registers."""
