"""A matrix times tens or hundreds of vectors in CUDA C++ against float64."""

import pytest
import torch
import torch.nn.functional as F
from checks import TOLERANCE, rand

from mamba_ssm.ops.cuda import project_rows
from mamba_ssm.ops.cuda.project_rows import MOST_ROWS, STEP, Tile, choose_tile


def compare(device, batch, inputs, outputs, dtype=torch.float16, bias=False, width=0, spare=0):
    """width: of the convolution that the first half of the outputs goes through; spare: more columns of x's rows."""
    torch.manual_seed(0)
    x = rand(batch, inputs + spare, dtype=dtype, device=device)[:, :inputs]
    weight = (rand(outputs, inputs) * inputs**-0.5).to(dtype).to(device)
    added = rand(outputs, dtype=dtype, device=device) if bias else None
    want = F.linear(x.double(), weight.double(), None if added is None else added.double())
    convolution = None
    if width:
        channels = outputs // 2
        state, conv_weight = (rand(n, channels, width, dtype=dtype, device=device) for n in (batch, 1))
        convolution = state, conv_weight[0], rand(channels, dtype=dtype, device=device) if bias else None
        moved = torch.cat([state[..., 1:].double(), want[:, :channels, None]], dim=-1)
        convolved = (moved * conv_weight.double()).sum(-1)
        if convolution[2] is not None:
            convolved += convolution[2].double()
        want[:, :channels] = F.silu(convolved)
    assert project_rows.takes(x, weight)
    got = project_rows.project_rows(x, weight, added, convolution)
    assert got.dtype == dtype
    assert (got.double() - want).norm() / want.norm() < TOLERANCE[dtype]
    if convolution is not None:
        assert (convolution[0].double() - moved).norm() / moved.norm() < TOLERANCE[dtype]
    return got


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "inputs", "outputs"), [(9, 8, 5), (16, 128, 80), (33, 200, 37), (70, 72, 50), (130, 64, 16)]
)
def test_any_sizes(device, batch, inputs, outputs, dtype):
    compare(device, batch, inputs, outputs, dtype)
    compare(device, batch, inputs, outputs, dtype, bias=True, spare=8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("channels", [40, 37])
def test_with_a_convolution(device, channels, width, dtype):
    compare(device, 33, 136, 2 * channels, dtype, width=width)
    compare(device, 18, 64, 2 * channels, dtype, bias=True, width=width)


TILES = [
    Tile(rows=16, outputs=16, warps_m=1, warps_n=2, warps_k=2, cluster=8, stages=2),
    Tile(rows=32, outputs=24, warps_m=2, warps_n=1, warps_k=2, cluster=2, stages=2),
    Tile(rows=32, outputs=48, warps_m=2, warps_n=2, warps_k=1, cluster=1, stages=3),
    Tile(rows=64, outputs=48, warps_m=2, warps_n=1, warps_k=2, cluster=4, stages=4),
    Tile(rows=64, outputs=80, warps_m=2, warps_n=2, warps_k=2, cluster=1, stages=5),
    Tile(rows=128, outputs=32, warps_m=4, warps_n=2, warps_k=1, cluster=2, stages=4),
]


@pytest.mark.parametrize("tile", TILES)
def test_every_cut(device, monkeypatch, tile):
    """Blocks of a cluster and warps of a block that share a tile, more stages than steps and fewer."""
    project_rows._plan.cache_clear()
    monkeypatch.setattr(project_rows, "choose_tile", lambda *_: tile)
    compare(device, tile.rows + 3, 9 * STEP - 8, tile.outputs + 6, bias=True)
    if tile.outputs % 16 == 0:
        compare(device, tile.rows - 3, 8 * STEP, tile.outputs + 6, torch.bfloat16, bias=True, width=4)
    project_rows._plan.cache_clear()


@pytest.mark.parametrize("batch", [9, 16, 33, 64, 128, 256])
@pytest.mark.parametrize(("inputs", "outputs"), [(2560, 10240), (5120, 192), (5120, 2560), (1536, 80), (768, 3072)])
@pytest.mark.parametrize("most_cluster", [1, 8])
def test_cuts_of_published_models_fill_the_gpu(batch, inputs, outputs, most_cluster):
    shared = 224 * 1024 if most_cluster > 1 else 160 * 1024
    for convolves in (False, True):
        tile = choose_tile(batch, inputs, outputs, convolves, 132, shared, most_cluster)
        assert tile.stages * (tile.rows + tile.outputs) * STEP * 2 <= shared
        blocks = -(-batch // tile.rows) * -(-outputs // tile.outputs) * tile.cluster
        assert blocks >= 80 or outputs <= 192
        assert blocks <= 132 or blocks >= 200


def test_what_it_does_not_take():
    x, weight = torch.zeros(16, 64, dtype=torch.float16), torch.zeros(8, 64, dtype=torch.float16)
    assert project_rows.takes(x, weight)
    assert not project_rows.takes(x.float(), weight.float())
    assert not project_rows.takes(torch.zeros(MOST_ROWS + 1, 64, dtype=torch.float16), weight)
    assert not project_rows.takes(x[:, :60], weight[:, :60])
    assert not project_rows.takes(x[:, 4:60], weight[:, 4:60])


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [9, 16, 33, 100, 128, 200, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_published_sizes(device, batch, dtype):
    for inputs, outputs in ((2560, 10240), (768, 3072)):
        compare(device, batch, inputs, outputs, dtype, width=4)
    for inputs, outputs in ((5120, 192), (5120, 2560), (1536, 80), (1536, 768), (1032, 777)):
        compare(device, batch, inputs, outputs, dtype, bias=outputs == 777)


@pytest.mark.gpu
@pytest.mark.parametrize("tile", TILES)
def test_every_cut_on_a_gpu(device, monkeypatch, tile):
    if torch.cuda.get_device_capability() < (9, 0):
        tile = tile._replace(cluster=1, stages=2)
    test_every_cut(device, monkeypatch, tile)


@pytest.mark.gpu
def test_repeats_bit_for_bit(device):
    first, *others = (compare(device, 128, 5120, 192) for _ in range(5))
    assert all(torch.equal(first, other) for other in others)
