"""The parts of a step that decide its speed, each written once for GPUs and for CPUs."""
