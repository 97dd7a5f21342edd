"""A project's first files: what `mltune init` writes, and how it loses nothing."""
