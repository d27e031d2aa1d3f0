"""OpenTelemetry traces of the way that jobs take: built from what Redis keeps of them, in a process of its own."""
