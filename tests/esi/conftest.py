from collections.abc import Iterator

import pytest
import torch
from small_esi import small_model

from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel


@pytest.fixture
def model() -> MambaLMHeadModel:
    return small_model()


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
