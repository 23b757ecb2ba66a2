"""Names the Triton backend, which TRITON_INTERPRET=1 lets run on the CPU. For INSTRUCTRL_TEST_PLUGIN."""

BACKEND = "triton"
