"""Digests of a training run; needs torch and the standard library alone."""
