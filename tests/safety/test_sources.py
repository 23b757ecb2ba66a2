"""No source of the product has a way from data to running code. `tests/test_layout.py` looks at some of it everywhere.

Names are followed through imports, so that `from torch import load as read` is seen too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("instructrl", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))]
TEMPLATES = sorted((ROOT / "instructrl").rglob("*.j2"))

# Packages that unpickle whatever they read.
MODULES = {
    *("pickle", "_pickle", "cPickle", "pickle5", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"),
    *("multiprocessing", "torch.multiprocessing", "torch.package"),
}
# What reads or writes pickles, or runs text. A pickle that is written is one that somebody has to read.
CALLS = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.serialization.load"),
    *("torch.distributed.checkpoint.load", "torch.distributed.checkpoint.save"),
    *("torch.distributed.checkpoint.FileSystemReader", "torch.distributed.checkpoint.FileSystemWriter"),
    *("pandas.read_pickle", "pandas.eval", "numpy.core.multiarray._reconstruct"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("eval", "exec", "compile", "__import__", "input"),
    *("os.system", "os.popen", "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput", "runpy.run_path"),
}
FAMILIES = ("os.exec", "os.spawn", "os.posix_spawn", "asyncio.create_subprocess_shell")
# torch.distributed pickles Python objects to send them.
OBJECTS = re.compile(r"torch\.distributed\.\w*object\w*")
# (keyword, the only value that it may have)
KEYWORDS = {"allow_pickle": "False", "shell": "False", "weights_only": "True", "autoescape": "True"}
# What has to be said, since the default is another or has been.
NEEDED = {"numpy.load": "allow_pickle", "jinja2.Environment": "autoescape"}


def names(tree: ast.AST) -> dict[str, str]:
    """Name in the file -> dotted name of what was imported under it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, `a.b` of `from a import b` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr, imported: dict[str, str]) -> str:
    """`np.load` as `numpy.load`; "" for what is no name, such as a method of a value."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (above := dotted(node.value, imported)):
        return f"{above}.{node.attr}"
    return ""


def safe_loads(tree: ast.AST, imported: dict[str, str]) -> set[ast.expr]:
    """`yaml.load` where it is called with the safe loader, or one made of it alone in the same file."""
    loaders = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    loaders |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and [dotted(base, imported) for base in node.bases] == ["yaml.SafeLoader"]
    }
    return {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func, imported) == "yaml.load"
        for word in node.keywords
        if word.arg == "Loader" and dotted(word.value, imported) in loaders
    }


def dangers(source: str) -> list[str]:
    """What a source does that data must never reach."""
    tree = ast.parse(source)
    imported = names(tree)
    allowed = safe_loads(tree, imported)
    found = [f"imports {name}" for name in modules(tree) if {name, name.split(".")[0]} & MODULES]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load) and node not in allowed:
            name = dotted(node, imported)
            if name in CALLS or name.startswith(FAMILIES) or OBJECTS.fullmatch(name):
                found.append(f"line {node.lineno}: {name}")
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        for word, value in keywords.items():
            if KEYWORDS.get(word, value) != value:
                found.append(f"line {node.lineno}: {word}={value}")
        word = NEEDED.get(dotted(node.func, imported))
        if word is not None and word not in keywords:
            found.append(f"line {node.lineno}: {dotted(node.func, imported)} without {word}")
    return found


def unescaped(template: str) -> list[str]:
    """What a template puts on the page as it is; fixed text may be."""
    return re.findall(r"""(?<!["'])\s\|\s*safe\b|\{%-?\s*autoescape|\|\s*safe\s*\|""", template)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_data(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_leaves_text_unescaped(path):
    assert unescaped(path.read_text(encoding="utf-8")) == []


def test_every_source_is_looked_at():
    found = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"instructrl/cli.py", "instructrl/runs/folder.py", "kernels/triton/ppo.py"} <= found
    assert {path.name for path in TEMPLATES} >= {"report.html.j2", "figure.svg.j2"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import dill",
        "import marshal",
        "import shelve",
        "from joblib import load",
        "import torch.multiprocessing",
        "from torch import multiprocessing",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=True)",
        "from torch import load as read\nread(path)",
        "import torch\nread = torch.load",
        "import torch\nmap(torch.load, paths)",
        "import torch\ntorch.save(x, path)",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
        "from torch.distributed import broadcast_object_list\nbroadcast_object_list(a)",
        "import torch.distributed.checkpoint as dcp\ndcp.load(state)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "np.savez(path, allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nclass L(yaml.Loader): ...\nyaml.load(text, Loader=L)",
        "import yaml\nclass L(yaml.SafeLoader, Other): ...\nyaml.load(text, Loader=L)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "input('sure?')",
        "import os\nos.system(text)",
        "from os import popen\npopen(text)",
        "import os\nos.execvp(a, b)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "import jinja2\njinja2.Environment(loader=x)",
        "import jinja2\njinja2.Environment(autoescape=False)",
    ],
)
def test_the_danger_is_seen(source):
    assert len(dangers(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.load(file)",
        "policy.eval()",
        "import re\nre.compile(text)",
        "import torch\ntorch.compile(f)",
        "import yaml\nyaml.safe_load(text)\nyaml.safe_dump(text)",
        "import yaml\nclass L(yaml.SafeLoader): ...\nyaml.load(text, Loader=L)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import torch.distributed as dist\ndist.all_reduce(x)",
        "subprocess.run([program], shell=False)",
        "RewardModel.load(path)\nself.load(path)",
        "from instructrl.kernels import load\nload()",
        "import jinja2\njinja2.Environment(autoescape=True)",
    ],
)
def test_what_is_harmless_passes(source):
    assert dangers(source) == []


def test_unescaped_text_in_a_template_is_seen():
    assert unescaped("{{ name | safe }}")
    assert unescaped("{% autoescape false %}{{ name }}{% endautoescape %}")
    assert not unescaped("""<p{{ ' class="lead"' | safe if loop.first }}>{{ name | visible }}""")
