"""Packages that a host imports and that a run on a CPU calls nothing of: files of their names, where there are none.

python -m benchmarks.end_to_end.host_runs.absent HOST      # into the site-packages of this interpreter
"""

import sys
import sysconfig
from pathlib import Path

_RAISES = "def {name}(*args, **kwargs):\n    raise RuntimeError('{name}: found a file in place of its package')\n"

PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "nemo_rl": {"mlflow/__init__.py": (), "swanlab/__init__.py": (), "wandb/__init__.py": ()},
    "openrlhf": {
        "flash_attn/__init__.py": (),
        "flash_attn/bert_padding.py": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
        "flash_attn/utils/__init__.py": (),
        "flash_attn/utils/distributed.py": ("all_gather",),
        "vllm/__init__.py": ("SamplingParams",),
        "vllm/inputs.py": ("TokensPrompt",),
        "vllm/utils.py": ("random_uuid",),
    },
}
"""By host: files, and the names that it imports from each."""


def write(host: str, folder: Path) -> None:
    """Where there is no such package."""
    present = {path.name for path in folder.iterdir()}
    for path, names in PACKAGES.get(host, {}).items():
        if path.split("/")[0] not in present:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("\n\n".join(_RAISES.format(name=name) for name in names), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1], Path(sysconfig.get_path("purelib")))
