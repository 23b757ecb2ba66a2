"""Studies: fields of a run are varied, and what of it is done already is used again (paper, appendix E)."""
