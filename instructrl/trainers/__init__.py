"""The three steps of the paper, and the pretraining that a miniature needs first."""
