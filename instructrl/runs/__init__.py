"""Named runs: which data, which sizes, which steps, in which order."""
