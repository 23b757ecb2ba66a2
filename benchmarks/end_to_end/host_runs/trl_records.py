"""What TRL's own trainers compute on the networks of `trl_ppo`, each in an environment with the last TRL that has it.

python -m benchmarks.end_to_end.host_runs.trl_records [--write]

Without `--write` it is compared with tests/integrations/trl_records.json, to which our trainers are held without TRL.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from typing import Any

from benchmarks.core.machine import ROOT
from benchmarks.end_to_end.host_runs.environments import environment

RECORDS = ROOT / "tests" / "integrations" / "trl_records.json"
# By what is recorded, the environment.
HOSTS = {"ppo": "trl_ppo", "reward": "trl_ppo", "step": "trl_legacy"}
VERSIONS = {"1.12": "trl_ppo", "0.11": "trl_legacy"}
ROUNDING = 1e-5


def recorded(host: str, what: str) -> Any:
    command = [environment(host), "-m", "benchmarks.end_to_end.host_runs.trl_ppo", what]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def everything() -> dict[str, Any]:
    """As the file has it."""
    found = {what: recorded(host, what) for what, host in HOSTS.items()}
    return {**found, "arguments": {version: recorded(host, "arguments") for version, host in VERSIONS.items()}}


def differences(found: Any, kept: Any, place: str = "") -> list[str]:
    """Places where two records are not the same but for rounding."""
    if isinstance(found, dict) and isinstance(kept, dict) and set(found) == set(kept):
        return [each for name in found for each in differences(found[name], kept[name], f"{place}/{name}")]
    if isinstance(found, list) and isinstance(kept, list) and len(found) == len(kept):
        # A vector's numbers are rounded by its size.
        if found and all(isinstance(x, float) for x in (*found, *kept)):
            largest = max(abs(x) for x in (*found, *kept))
            same = all(math.isclose(a, b, abs_tol=ROUNDING * largest) for a, b in zip(found, kept, strict=True))
            return [] if same else [f"{place}: found {found}, kept is {kept}"]
        pairs = enumerate(zip(found, kept, strict=True))
        return [each for number, (a, b) in pairs for each in differences(a, b, f"{place}/{number}")]
    if isinstance(found, float) and isinstance(kept, float):
        same = math.isclose(found, kept, rel_tol=ROUNDING, abs_tol=ROUNDING)
    else:
        same = found == kept
    return [] if same else [f"{place}: found {found}, kept is {kept}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    record = everything()
    if parser.parse_args().write:
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
        RECORDS.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
        sys.exit()
    found = differences(record, json.loads(RECORDS.read_text(encoding="utf-8")))
    print("\n".join(found) or "TRL computes what the records say")
    sys.exit(bool(found))
