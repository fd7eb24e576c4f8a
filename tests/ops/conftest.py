import os
from collections.abc import Iterator

import pytest
import torch

from mamba_ssm.ops import backend

BACKENDS = ["reference", "cpu", *(["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else [])]


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each back-end that this machine has."""
    with backend.use(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
