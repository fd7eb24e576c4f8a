"""Train on one text that lies in parts on several devices, as one device would.

torchrun --nproc-per-node 2 examples/several_devices.py
"""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mamba_ssm import MambaLMHeadModel
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.ops.context_parallel import ContextParallel, own_part

device = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if device == "cuda" else "gloo")
if device == "cuda":
    torch.cuda.set_device(dist.get_node_local_rank())
torch.manual_seed(0)  # the same weights on all ranks
model = MambaLMHeadModel(MambaConfig(d_model=64, n_layer=2, vocab_size=256), device=device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

text = Path(__file__).with_name("abs-guide.md").read_bytes()[:20_001]
ids = torch.tensor(list(text), device=device)[None]
part, targets = own_part(ids[:, :-1]), own_part(ids[:, 1:])  # cut after the shift: a part's last target is in the next
for step in range(5):
    logits = model(part, context=ContextParallel(part)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / (ids.numel() - 1)
    loss.backward()
    for share in (loss.detach(), *(p.grad for p in model.parameters())):
        dist.all_reduce(share)
    optimizer.step()
    optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"step {step}: loss {loss.item():.4f}")
dist.destroy_process_group()
