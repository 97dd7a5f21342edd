"""Runs compared with runs. Standard library and numpy on raw tensor bytes."""
