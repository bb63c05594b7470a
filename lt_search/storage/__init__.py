"""Storage of runs: journal, records, checkpoints and shared stage-1 artefacts, written atomically and verified."""
