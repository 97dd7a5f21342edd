"""One module per verb: take plain values, call the rooms below, render, return an exit code."""
