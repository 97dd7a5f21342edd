"""The pinned image: what goes into it, how an engine builds it, and what ran in it."""
