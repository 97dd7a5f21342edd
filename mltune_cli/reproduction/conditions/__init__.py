"""Conditions that must not change the bits: named, checked, and made for a run."""
