"""Packages that a host imports and that need a GPU: files of their names, for a run on a CPU that calls nothing of them.

Written to a folder, so that processes which the host starts find them too.
"""

from pathlib import Path

_RAISES = "def {name}(*args, **kwargs):\n    raise RuntimeError('{name} is not here')\n\n\n"

PACKAGES: dict[str, tuple[str, ...]] = {
    "flash_attn/__init__.py": (),
    "flash_attn/bert_padding.py": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn/utils/__init__.py": (),
    "flash_attn/utils/distributed.py": ("all_gather",),
    "vllm/__init__.py": ("SamplingParams",),
    "vllm/inputs.py": ("TokensPrompt",),
    "vllm/utils.py": ("random_uuid",),
}
"""Names that OpenRLHF imports."""


def write(folder: Path) -> None:
    for path, names in PACKAGES.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(_RAISES.format(name=name) for name in names) or "", encoding="utf-8")
