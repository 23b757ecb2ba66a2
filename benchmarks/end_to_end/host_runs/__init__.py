"""A host's own trainers on a tiny model, with and without its adapter.

python -m benchmarks.end_to_end.host_runs.HOST TRAINER [--adapter] [--steps 10]

One process is one run and prints one line of JSON, a `Record`: what training gave, and what it took.
"""
