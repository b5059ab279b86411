"""The machine: devices, system information, calls in a separate process."""
