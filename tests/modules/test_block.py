"""The residual block, in both of the original's calling styles."""

from functools import partial

import pytest
import torch
from torch import nn

from mamba_ssm.modules.block import Block
from mamba_ssm.modules.mamba_simple import Block as OldBlock
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.layer_norm import RMSNorm


@pytest.mark.parametrize("norm", [nn.LayerNorm, RMSNorm])
def test_fused_and_plain_add_and_norm_agree_and_the_block_is_its_formula(norm):
    torch.manual_seed(0)
    plain = Block(8, Mamba, norm_cls=norm)
    fused = Block(8, Mamba, nn.Identity, norm_cls=norm, fused_add_norm=True)
    fused.load_state_dict(plain.state_dict())
    x, residual = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    for block in (plain, fused):
        out, total = block(x, residual)
        torch.testing.assert_close(total, x + residual)
        torch.testing.assert_close(out, plain.mixer(plain.norm(x + residual)))
        torch.testing.assert_close(block(x)[1], x)


def test_the_residual_stays_in_fp32_on_request():
    for fused in (False, True):
        factory = {"dtype": torch.bfloat16}
        block = Block(
            8,
            partial(Mamba, **factory),
            norm_cls=partial(RMSNorm, **factory),
            fused_add_norm=fused,
            residual_in_fp32=True,
        )
        x = torch.randn(1, 3, 8, dtype=torch.bfloat16)
        out, residual = block(x)
        assert (out.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
        assert block(out, residual)[1].dtype == torch.float32


def test_an_mlp_follows_the_mixer_if_given():
    torch.manual_seed(0)
    block = Block(8, Mamba, partial(nn.Linear, out_features=8), norm_cls=RMSNorm)
    x = torch.randn(1, 3, 8)
    mixed = block.mixer(block.norm(x))
    out, residual = block(x)
    torch.testing.assert_close(residual, x + mixed)
    torch.testing.assert_close(out, block.mlp(block.norm2(x + mixed)))


def test_the_old_import_path_is_the_same_class():
    assert OldBlock is Block


def test_fusing_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="GroupNorm"):
        Block(8, Mamba, norm_cls=partial(nn.GroupNorm, 2), fused_add_norm=True)
