"""One module per rule; each has a `CHECK`, which `mltune_cli.diagnosis.registry` puts in order."""
