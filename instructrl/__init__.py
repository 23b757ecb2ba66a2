"""InstructRL: instruction following from human feedback, on kernels whose reference is plain PyTorch."""

__version__ = "0.1.0"
