"""InstructRL: instruction following from human feedback, on fused kernels with a PyTorch reference."""

__version__ = "0.1.0"
