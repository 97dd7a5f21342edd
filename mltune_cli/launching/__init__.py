"""Child processes: their environment, their start, their event stream. No torch here."""
