"""How fast, how large and how steep: a folder a question, and `core` for what all of them measure with.

Commands are modules and run from the repository's root: `python -m benchmarks.ops.floors`.
"""
