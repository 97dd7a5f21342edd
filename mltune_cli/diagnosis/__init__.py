"""The doctor: checks of machine, packages, GPU, settings, Docker, recipe and data."""
