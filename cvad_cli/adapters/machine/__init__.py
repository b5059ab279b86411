"""The machine: devices, system information, processes of their own."""
