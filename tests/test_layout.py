"""The tree is the architecture: which module may import which, and the habits that every file keeps.

Each rule is a function of a module's place and its source, so that the tests below can show it a file that breaks it.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("instructrl", "kernels", "tests", "benchmarks")

# A module imports from its own package and from packages of a lower number.
LAYERS = {
    "types": 0,
    "labels": 0,
    "model_names": 0,
    "settings": 0,
    "durable": 0,
    "progress": 0,
    "interruption": 0,
    "profiling": 0,
    "threads": 0,
    "kernels": 0,
    "ops": 1,
    "distributed": 1,
    "tracking": 2,
    "objectives": 2,
    "models": 2,
    "data": 2,
    "rollout": 3,
    "trainers": 4,
    "evaluation": 4,
    "worlds": 4,
    "integrations": 5,
    "runs": 5,
    "commands": 6,
    "cli": 7,
}
TRANSFORMERS_IN = ("models", "data", "trainers", "integrations")
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "misc", "helpers", "helper"}
MAX_LINES, MAX_FUNCTION_LINES = 400, 60


def sources() -> dict[str, str]:
    """Path in the repository -> source of every Python file."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in [*paths, ROOT / "setup.py"]}


@functools.cache
def parsed(source: str) -> ast.Module:
    """Every rule reads every file."""
    return ast.parse(source)


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(parsed(source)))


def module_of(path: str) -> str:
    """Dotted name; `kernels/native` is installed as `instructrl.kernels.native`."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"instructrl.{name}" if path.startswith("kernels/") else name


def imports(path: str, source: str) -> Iterator[str]:
    """Dotted names of everything imported, those inside functions too; `from a import b` counts as a.b."""
    package = module_of(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node in nodes(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_direction(path: str, source: str) -> list[str]:
    """Imports that do not point down."""
    own = module_of(path).split(".")
    if own[0] != "instructrl" or len(own) == 1:
        return []
    if own[1] == "kernels" and len(own) > 2:
        return wrong_from_backend(path, source)
    found = []
    for name in imports(path, source):
        parts = name.split(".")
        if parts[0] != "instructrl" or len(parts) == 1 or parts[1] not in LAYERS or parts[1] == own[1]:
            continue
        if own[1] not in LAYERS or LAYERS[parts[1]] >= LAYERS[own[1]]:
            found.append(f"{path} imports {name}")
    return found


def wrong_from_backend(path: str, source: str) -> list[str]:
    """A backend imports the ops it implements, the registry, and itself."""
    backend = module_of(path).split(".")[2]
    accepted = ("instructrl.ops", f"instructrl.kernels.{backend}")
    others = [
        name for name in imports(path, source) if name.startswith("instructrl.") and not name.startswith(accepted)
    ]
    siblings = (["kernels", "native"], ["kernels", "triton"])
    registry = [name for name in others if name.split(".")[1] == "kernels" and name.split(".")[1:3] not in siblings]
    return [f"{path} imports {name}" for name in others if name not in registry]


def backend_by_name(path: str, source: str) -> list[str]:
    """Everything above the registry asks it for a backend; nothing imports one."""
    if path.startswith("kernels/") or not path.startswith("instructrl/"):
        return []
    names = [
        name
        for name in imports(path, source)
        if name.startswith(("instructrl.kernels.native", "instructrl.kernels.triton"))
    ]
    return [f"{path} imports {name}" for name in names]


def transformers_elsewhere(path: str, source: str) -> list[str]:
    """`transformers` where only its wrappers should be."""
    names = [name for name in imports(path, source) if name.split(".")[0] == "transformers"]
    if not path.startswith("instructrl/") or path.split("/")[1] in TRANSFORMERS_IN:
        return []
    return [f"{path} imports {name}" for name in names]


def peft_elsewhere(path: str, source: str) -> list[str]:
    """`peft` outside of the models, or before an adapter is asked for: it is not always installed."""
    if not path.startswith("instructrl/"):
        return []
    found = [f"{path} imports {name}" for name in imports(path, source) if name.split(".")[0] == "peft"]
    by_name = [
        node for node in nodes(source) if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func)
    ]
    if not path.startswith("instructrl/models/"):
        found += [f"{path}:{node.lineno} imports peft" for node in by_name if "'peft" in ast.unparse(node)]
    return found


def empty_names(path: str, source: str) -> list[str]:
    """Folders and files named after nothing."""
    return [f"{path}: {part}" for part in Path(path).with_suffix("").parts if part in NAMES_THAT_SAY_NOTHING]


def too_long(path: str, source: str) -> list[str]:
    """Files and functions that nobody reads in one go."""
    found = [f"{path} has {n} lines"] if (n := len(source.splitlines())) > MAX_LINES else []
    for node in nodes(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            product = not path.startswith("tests/")
            if lines > MAX_FUNCTION_LINES and product:
                found.append(f"{path}: {node.name} has {lines} lines")
    return found


def catches_everything(path: str, source: str) -> list[str]:
    """`except:`, `except Exception` and the like, alone or in a tuple."""
    found = []
    for node in nodes(source):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {"everything" if kind is None else ast.unparse(kind) for kind in kinds}
            if names & {"everything", "Exception", "BaseException"}:
                found.append(f"{path}:{node.lineno} catches {', '.join(sorted(names))}")
    return found


def unpickles(path: str, source: str) -> list[str]:
    """Ways from a file to running code. Tests go them on purpose, to see that the product does not."""
    if path.startswith("tests/"):
        return []
    modules = {name.split(".")[0] for name in imports(path, source)}
    found = [
        f"{path} imports {name}" for name in sorted(modules & {"pickle", "cPickle", "dill", "cloudpickle", "shelve"})
    ]
    for node in nodes(source):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{path}:{node.lineno} calls torch.load without weights_only=True")
            if keywords.get("trust_remote_code") == "True":
                found.append(f"{path}:{node.lineno} passes trust_remote_code=True")
    return found


def trusting_defaults(path: str, source: str) -> list[str]:
    """Functions and classes that trust a model's own code unless told otherwise."""
    found = []
    for node in nodes(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            plain = [*node.args.posonlyargs, *node.args.args]
            pairs = [*zip(plain[::-1], node.args.defaults[::-1], strict=False)]
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            named = [(argument.arg, default) for argument, default in pairs]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named = [(node.target.id, node.value)]
        else:
            continue
        for name, default in named:
            if name == "trust_remote_code" and isinstance(default, ast.Constant) and default.value is not False:
                found.append(f"{path}:{node.lineno} has trust_remote_code={default.value}")
    return found


def loose_records(path: str, source: str) -> list[str]:
    """Public dataclasses of the product that can change, and configurations whose fields can be mistaken."""
    if not path.startswith(("instructrl/", "kernels/")):
        return []
    found = []
    for node in nodes(source):
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            text = ast.unparse(decorator)
            name = getattr(node, "name", "_")
            if text.split("(")[0] not in ("dataclass", "dataclasses.dataclass") or name.startswith("_"):
                continue
            words = ("frozen", "slots", "kw_only") if name.endswith("Config") else ("frozen", "slots")
            missing = [word for word in words if f"{word}=True" not in text]
            found += [f"{path}: {name} is not {', '.join(missing)}"] if missing else []
    return found


def nameless_keys(path: str, source: str) -> list[str]:
    """Keys of random numbers whose parts do not say what is drawn."""
    if not path.startswith("instructrl/"):
        return []
    found = []
    for node in nodes(source):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("keyed_seed", "keyed_generator"):
            numbers = [ast.unparse(part) for part in node.args if ast.unparse(part).lstrip("-").isdigit()]
            found += [f"{path}:{node.lineno} has the key {number}" for number in numbers]
    return found


def undocumented(path: str, source: str) -> list[str]:
    """Files without a first line that says what they are for."""
    if not path.startswith(("instructrl/", "kernels/")):
        return []
    return [] if ast.get_docstring(parsed(source)) else [f"{path} has no docstring"]


# Rule, path and source of a file that breaks it, and of one that keeps it.
RULES = [
    (
        wrong_direction,
        "instructrl/rollout/x.py",
        "from instructrl.trainers.ppo import A",
        "from instructrl.types import A",
    ),
    (wrong_direction, "instructrl/models/x.py", "def f():\n    import instructrl.runs.files", "import instructrl.ops"),
    (wrong_direction, "instructrl/models/x.py", "from instructrl import trainers", "from instructrl import types"),
    (wrong_direction, "instructrl/models/x.py", "from ..trainers import loop", "from . import policy"),
    (wrong_direction, "instructrl/data/x.py", "import instructrl.models.policy", "import instructrl.data.rows"),
    (wrong_direction, "instructrl/types.py", "import instructrl.ops.ppo", "import torch"),
    (
        wrong_direction,
        "instructrl/runs/x.py",
        "from instructrl.commands import options",
        "from instructrl.worlds import kinds",
    ),
    (wrong_direction, "instructrl/new/x.py", "import instructrl.types", "import torch"),
    (wrong_direction, "kernels/triton/x.py", "from instructrl.models import policy", "from instructrl.ops import ppo"),
    (
        wrong_direction,
        "kernels/triton/x.py",
        "import instructrl.kernels.native.ppo",
        "from instructrl.kernels import attach",
    ),
    (backend_by_name, "instructrl/ops/x.py", "from instructrl.kernels import triton", "from instructrl import kernels"),
    (backend_by_name, "instructrl/ops/x.py", "import instructrl.kernels.native", "import instructrl.kernels"),
    (transformers_elsewhere, "instructrl/rollout/x.py", "from transformers import GPT2Config", "import transformer"),
    (transformers_elsewhere, "instructrl/ops/x.py", "def f():\n    import transformers.utils", "import torch"),
    (peft_elsewhere, "instructrl/models/x.py", "import peft", 'import_module("peft")'),
    (peft_elsewhere, "instructrl/runs/x.py", 'importlib.import_module("peft.utils")', 'import_module("torch")'),
    (empty_names, "instructrl/models/utils.py", "", ""),
    (empty_names, "instructrl/common/policy.py", "", ""),
    (too_long, "x.py", "x = 1\n" * 401, "x = 1\n" * 400),
    (too_long, "x.py", "def f():\n" + "    x = 1\n" * 60, "def f():\n" + "    x = 1\n" * 59),
    (
        catches_everything,
        "x.py",
        "try:\n    f()\nexcept Exception:\n    g()",
        "try:\n    f()\nexcept OSError:\n    g()",
    ),
    (catches_everything, "x.py", "try:\n    f()\nexcept:\n    g()", "try:\n    f()\nfinally:\n    g()"),
    (catches_everything, "x.py", "try:\n    f()\nexcept (OSError, BaseException):\n    g()", ""),
    (unpickles, "x.py", "import pickle", "import json"),
    (unpickles, "x.py", "from pickle import loads", "from json import loads"),
    (unpickles, "x.py", "torch.load(path)", "torch.load(path, weights_only=True)"),
    (unpickles, "x.py", "torch.load(path, weights_only=False)", "torch.save(x, path)"),
    (unpickles, "x.py", "f(path, trust_remote_code=True)", "f(path, trust_remote_code=flag)"),
    (trusting_defaults, "x.py", "def f(a, trust_remote_code=True): ...", "def f(a, *, trust_remote_code=False): ..."),
    (trusting_defaults, "x.py", "def f(*, trust_remote_code=None): ...", "def f(trust_remote_code): ..."),
    (trusting_defaults, "x.py", "class A:\n    trust_remote_code: bool = True", "trust_remote_code: bool = False"),
    (
        loose_records,
        "instructrl/x.py",
        "@dataclass\nclass A: ...",
        "@dataclass(frozen=True, slots=True, kw_only=True)\nclass A: ...",
    ),
    (
        loose_records,
        "instructrl/x.py",
        "@dataclass(frozen=True, kw_only=True)\nclass A: ...",
        "class A(NamedTuple): ...",
    ),
    (nameless_keys, "instructrl/x.py", "keyed_seed(seed, 0)", "keyed_seed(seed, _PROMPT_ORDER, step)"),
    (nameless_keys, "instructrl/x.py", "keyed_generator(self.seed, -1, step)", "keyed_generator(seed, *text.encode())"),
    (undocumented, "instructrl/x.py", "x = 1", '"""What it is for."""\nx = 1'),
]
UNIQUE_RULES = list(dict.fromkeys(rule for rule, *_ in RULES))


@pytest.mark.parametrize("rule", UNIQUE_RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    found = [line for path, source in sources().items() for line in rule(path, source)]
    assert not found, "\n".join([(rule.__doc__ or "").splitlines()[0], *found])


@pytest.mark.parametrize(
    ("rule", "path", "bad", "good"), RULES, ids=[f"{rule.__name__}-{i}" for i, (rule, *_) in enumerate(RULES)]
)
def test_the_rule_fires(rule, path, bad, good):
    assert len(rule(path, bad)) == 1
    assert rule("instructrl/models/policy.py" if rule is empty_names else path, good) == []


def test_every_package_has_its_layer():
    packages = {path.name for path in (ROOT / "instructrl").iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in (ROOT / "instructrl").glob("*.py")} - {"__init__"}
    assert packages | modules == set(LAYERS)


def test_every_file_is_looked_at():
    found = sources()
    assert {"setup.py", "instructrl/cli.py", "instructrl/ops/ppo.py", "tests/test_layout.py"} <= set(found)


def test_the_backends_folder_is_no_package():
    """A package `kernels` would be taken for the one that transformers looks for."""
    assert list((ROOT / "kernels").glob("*.py")) == []
