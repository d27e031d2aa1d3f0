"""Workers: run jobs on a device."""
