"""One sequence on several ranks: the same outputs, states and gradients as on one, whatever the parts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import ranks

from mamba_ssm import Mamba, MambaLMHeadModel
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.ops.context_parallel import ContextParallel, own_part

EXAMPLE = Path(__file__).parents[2] / "examples" / "several_devices.py"

pytestmark = pytest.mark.filterwarnings("ignore:.*slow path")


@pytest.fixture(scope="module", params=[2, 4])
def run(request, tmp_path_factory):
    with ranks(request.param, tmp_path_factory.mktemp("ranks")) as run:
        run.size = request.param
        yield run


def close(got, want, tolerance):
    """Within a tolerance of the largest value."""
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * float(F.pad(want.abs().flatten(), (0, 1)).max()))


def check_layer(lengths, width, states, seed, packed):
    """A layer in fp64 on parts of these lengths: outputs, states, gradients of inputs and of all parameters."""
    rank = dist.get_rank()
    torch.manual_seed(seed)
    layer = Mamba(6, d_state=states, d_conv=width, dt_max=1.0).double()
    x, weight = (torch.randn(2, sum(lengths), 6, dtype=torch.float64) for _ in range(2))
    seq_idx = torch.randint(0, 5, x.shape[:2]).div(4, rounding_mode="floor").cumsum(1) if packed else None
    x.requires_grad_()
    y, state = layer(x, seq_idx=seq_idx, return_state=True)
    loss = (y * weight).sum() + sum(m.square().sum() for m in state)
    want = torch.autograd.grad(loss, [x, *layer.parameters()])

    own = [m.split(lengths, 1)[rank] for m in (x.detach(), weight)]
    part = own[0].clone().requires_grad_()
    context = ContextParallel(part[..., 0], None if seq_idx is None else seq_idx.split(lengths, 1)[rank])
    out, after = layer(part, context=context, return_state=True)
    last = rank == dist.get_world_size() - 1
    loss = (out * own[1]).sum() + last * sum(m.square().sum() for m in after)
    got = torch.autograd.grad(loss, [part, *layer.parameters()])

    close(out, y.split(lengths, 1)[rank], 1e-12)
    if last:
        for ours, theirs in zip(after, state, strict=True):
            close(ours, theirs, 1e-12)
    close(got[0], want[0].split(lengths, 1)[rank], 1e-11)
    for ours, theirs in zip(got[1:], want[1:], strict=True):
        dist.all_reduce(ours)
        close(ours, theirs, 1e-6)  # the layer takes A, D and the bias of its steps in fp32


@settings(max_examples=15)
@given(st.data())
def test_any_parts_of_a_layer_are_the_whole(run, data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=run.size, max_size=run.size).filter(any))
    numbers = data.draw(st.tuples(st.integers(1, 5), st.sampled_from([1, 3, 16]), st.integers(0, 99), st.booleans()))
    run(check_layer, lengths, *numbers)


def check_that_parts_matter():
    """What the other tests compare would differ, were nothing handed on."""
    torch.manual_seed(0)
    layer = Mamba(6)
    x = torch.randn(1, 13, 6)
    part = own_part(x)
    alone, told = layer(part), layer(part, context=ContextParallel(part[..., 0]))
    assert torch.allclose(alone, told) == (dist.get_rank() == 0)


def test_a_part_depends_on_those_before_it(run):
    run(check_that_parts_matter)


def check_model(device, dtype, tolerance):
    """Loss and gradients of a language model on packed documents, whose targets cross from part to part."""
    torch.manual_seed(0)
    model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=2, vocab_size=40, ssm_cfg={"d_state": 4})).to(device)
    ids = torch.randint(0, 40, (2, 37)).to(device)
    documents = torch.tensor([[0] * 7 + [1] * 11 + [2] * 19, [0] * 37], device=device)
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)

    def gradients(ids, targets, **packing):
        model.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            logits = model(ids, **packing).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum") / 72
        loss.backward()
        return [logits.detach(), loss.detach(), *(p.grad.clone() for p in model.parameters())]

    want = gradients(ids, targets, seq_idx=documents)
    part = own_part(ids)
    got = gradients(part, own_part(targets), context=ContextParallel(part, own_part(documents)))
    close(got[0], own_part(want[0]), tolerance)
    for ours, theirs in zip(got[1:], want[1:], strict=True):
        dist.all_reduce(ours)
        close(ours, theirs, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_of_a_model(run, dtype, tolerance):
    run(check_model, "cpu", dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 2])
def test_loss_and_gradients_of_a_model_on_gpus(size, tmp_path):
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    with ranks(size, tmp_path, "nccl") as run:
        run(check_model, "cuda", None, 1e-4)
        run(check_model, "cuda", torch.bfloat16, 3e-2)


def check_continuing():
    """The last rank's states are the whole text's: generation goes on from there."""
    torch.manual_seed(0)
    model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=2, vocab_size=40)).eval()
    ids = torch.randint(0, 40, (1, 22))
    with torch.no_grad():
        whole = model(ids).logits
        part = own_part(ids[:, :-1])
        states = model(part, context=ContextParallel(part), return_states=True).states
        if dist.get_rank() == dist.get_world_size() - 1:
            close(model(ids[:, -1:], initial_states=states).logits, whole[:, -1:], 1e-5)


def test_the_last_rank_continues_the_text(run):
    run(check_continuing)


def sent(length):
    """What this rank gives to collectives in a forward and a backward pass of a layer: names and shapes."""
    layer = Mamba(6, d_state=5, d_conv=3)
    part = own_part(torch.randn(2, length, 6)).requires_grad_()
    context = ContextParallel(part[..., 0])
    with torch.profiler.profile(record_shapes=True) as profile:
        layer(part, context=context).sum().backward()
    given = [event for event in profile.events() if event.name.startswith("gloo:")]
    return sorted((event.name, *event.input_shapes) for event in given)


@pytest.mark.parametrize("length", [8, 800])
def test_what_is_sent_is_a_state_and_the_columns_of_the_convolution(run, length):
    columns, state = [2, 12, 3], [2, 12, 5 + 1]  # (B, D, W), and (B, D, N) beside the sum of the steps
    back = [("gloo:all_to_all", [run.size, *own]) for own in (columns, state)]
    want = [("gloo:all_gather", columns), ("gloo:all_gather", state), *back]
    assert run(sent, length) == [want] * run.size


def test_the_example_says_the_same_for_any_number_of_devices():
    def losses(processes):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run([*command, EXAMPLE], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert losses(2) == losses(1) != ""


THREADS = """
import runpy, sys
from pathlib import Path
runpy.run_path(sys.argv[1])
print(*(thread.read_text() for thread in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_no_thread_of_the_group_outlives_it():
    """One that does may abort the process at its end."""
    command = ["torch.distributed.run", "--standalone", "--no-python", sys.executable, "-c", THREADS, EXAMPLE]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout
    assert "gloo" not in done.stdout


def check_errors():
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="the same rows"):
        ContextParallel(ids[: 1 + dist.get_rank() % 2])
    with pytest.raises(ValueError, match="each token"):
        ContextParallel(ids, ids[:, 1:])
    layer, context, hidden = Mamba(6), ContextParallel(ids), torch.zeros(2, 4, 6)
    for wrong in ({"seq_idx": ids}, {"attention_mask": ids == 0}, {"cu_seqlens": torch.tensor([0, 4])}):
        with pytest.raises(ValueError, match="context"):
            layer(hidden, context=context, **wrong)
    with pytest.raises(ValueError, match="context"):
        layer(hidden[:, 1:], context=context)


def test_what_does_not_fit_is_refused(run):
    run(check_errors)
