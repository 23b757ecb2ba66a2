import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from op_backends import BACKENDS, use


@pytest.fixture(params=[backend for backend, device in BACKENDS if device == "cpu"])
def each_backend(request):
    """Forces each backend of the CPU in turn."""
    with use(request.param):
        yield request.param
