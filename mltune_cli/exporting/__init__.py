"""A finished run as a folder for other tools: its files checked, its card written, its upload."""
