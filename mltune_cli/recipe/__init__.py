"""The recipe: its schema, where each value came from, and how it is read. No torch here."""
