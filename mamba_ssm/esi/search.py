"""Search: embed the question, project the text to the same space, score windows, keep the best k.

Shapes: B batch, M question tokens, L text tokens, R search width, W windows, K kept windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_ssm.ops import topk_search

MAX_SCALE = 100.0


@dataclass(frozen=True)
class Query:
    """A question in the search space: unit vectors (B, M, R) and their weights (B, M), which sum to 1 / temperature."""

    vectors: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Keys:
    """Search keys in a byte a number: codes (..., R) int8 times scales (...) fp16."""

    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, keys: Tensor) -> Keys:
        """Keys (L, R) in fp32, rounded: the error of a score is below a thousandth of its scale."""
        scales = (keys.abs().amax(-1) / 127).clamp(min=1e-4).half()
        return cls((keys / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales)

    def __len__(self) -> int:
        return len(self.scales)

    def values(self) -> Tensor:
        """In fp32."""
        return self.codes * self.scales.float().unsqueeze(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Keys:
        """Both parts, changed alike."""
        return Keys(change(self.codes), change(self.scales))

    def after(self, before: Keys) -> Keys:
        """Others, then these."""
        return Keys(torch.cat([before.codes, self.codes]), torch.cat([before.scales, self.scales]))


class Search(nn.Module):
    """Late interaction between a question and a text with a learned weight for each question token.

    S_c = 1/tau * sum_j omega_j * max_{i in c} q_j . k_i, as ColBERT's MaxSim (Khattab & Zaharia 2020, arXiv 2004.12832)
    with omega = softmax_j(u . h_j + log-prior of the token). The two projections start equal, so that a word of the
    question matches itself in the text before any training.
    """

    def __init__(self, d_model: int, d_search: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.query = nn.Linear(d_model, d_search, bias=False)
        self.key = nn.Linear(d_model, d_search, bias=False)
        self.weight = nn.Linear(d_model, 1, bias=False)
        self.prior = nn.Embedding(vocab_size, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        nn.init.orthogonal_(self.key.weight)
        with torch.no_grad():
            self.query.weight.copy_(self.key.weight)
            self.prior.weight.zero_()
            self.weight.weight.zero_()

    def question(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Query:
        """hidden (B, M, D), ids (B, M), mask (B, M) true where a token counts -> Query."""
        normed = self.norm(hidden)
        logits = (self.weight(normed) + self.prior(ids)).squeeze(-1).float()
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        vectors = F.normalize(self.query(normed).float(), dim=-1)
        return Query(vectors, weights * self.log_scale.exp().clamp(max=MAX_SCALE))

    def keys(self, hidden: Tensor) -> Tensor:
        """hidden (..., L, D) -> unit keys (..., L, R), fp32."""
        return F.normalize(self.key(self.norm(hidden)).float(), dim=-1)


def rank_weights(ids: Tensor) -> Tensor:
    """The square of an inverse document frequency by Zipf's law, of token ids of any shape, fp32.

    Byte-pair vocabularies are ordered by frequency, and the token of rank r has a share of about 1/r: idf ~ log(r).
    """
    return torch.log2(2.0 + ids.float()) ** 2


class EmbeddingSearch:
    """Search with a checkpoint's own token embeddings, for checkpoints that were never trained to search.

    Keys are embeddings (V, D) less their mean, at unit length; a token's weight goes by its rank in the vocabulary.
    """

    SCALE = 20.0

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.mean = table.float().mean(0)

    def keys(self, ids: Tensor) -> Tensor:
        """ids (..., L) -> unit keys (..., L, D), fp32."""
        return F.normalize(self.table[ids].float() - self.mean, dim=-1)

    def question(self, ids: Tensor, mask: Tensor) -> Query:
        """ids (B, M), mask (B, M) -> Query."""
        weights = rank_weights(ids) * mask
        return Query(self.keys(ids), self.SCALE * weights / weights.sum(-1, keepdim=True).clamp(min=1e-9))


def half_window_maxima(query: Query, keys: Tensor | Keys, stride: int) -> Tensor:
    """Best match of each question token in each run of ``stride`` tokens.

    keys (B, L, R) or (L, R), shared by all questions; L must be a multiple of ``stride`` -> (B, M, L / stride).
    """
    codes, scales = _parts(keys)
    return topk_search.half_window_maxima(query.vectors, codes, stride, scales)


def _parts(keys: Tensor | Keys) -> tuple[Tensor, Tensor | None]:
    return (keys.codes, keys.scales) if isinstance(keys, Keys) else (keys, None)


def window_scores(query: Query, maxima: Tensor) -> Tensor:
    """Scores of windows of two neighbouring half windows: maxima (B, M, ..., H) -> (B, ..., H - 1)."""
    return topk_search.pair_scores(query.weights, maxima)


@dataclass(frozen=True)
class Headings:
    """The headings that half windows stand under, S = ``count`` of them: keys (T, R) of all their tokens; title (T,),
    to which of them, 0..S-1, a key belongs; place (H,), under which a half window stands, S where under none.
    """

    keys: Tensor
    title: Tensor
    place: Tensor
    count: int

    def matches(self, query: Query) -> Tensor:
        """Best match of each question token in each half window's heading, (B, M, H); -inf where there is none."""
        best = self.keys.new_full((*query.weights.shape, self.count + 1), float("-inf"))
        matches = query.vectors @ self.keys.mT
        return best.scatter_reduce_(-1, self.title.expand_as(matches), matches, "amax")[..., self.place]


class TopK:
    """The k best windows of a stream, in memory that does not grow with it.

    ``scores`` (B, K) and ``starts`` (B, K) hold the windows' scores and first tokens, best first; unused places have
    the score -inf and the start -1.
    """

    def __init__(self, batch: int, k: int, device: torch.device | str = "cpu") -> None:
        self.scores = torch.full((batch, k), float("-inf"), device=device)
        self.starts = torch.full((batch, k), -1, dtype=torch.long, device=device)

    def merge(self, scores: Tensor, starts: Tensor) -> Tensor:
        """Add windows: scores (B, W), starts (W,). Returns (B, K): where each kept window came from,
        0..K-1 for the place it held before, K + w for the new window w."""
        k = self.scores.shape[1]
        all_scores = torch.cat([self.scores, scores.float()], 1)
        all_starts = torch.cat([self.starts, starts.to(self.starts).expand(len(scores), -1)], 1)
        # A stable sort, so that of equal scores the earlier window stays, whatever the split into blocks.
        order = all_scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        self.scores, self.starts = all_scores.gather(1, order), all_starts.gather(1, order)
        return order


def whole_window(keys: Keys, headings: Headings | None, stride: int) -> tuple[Keys, Headings | None]:
    """The first keys (L, R) of a stream and what they stand under: one shorter than a window is one window."""
    missing = max(2 * stride - len(keys), 0)
    if headings is not None:
        place = F.pad(headings.place, (0, missing // stride), value=headings.count)
        headings = replace(headings, place=place)
    return keys.map(lambda part: F.pad(part, (0, 0) * (part.dim() - 1) + (0, missing))), headings


class StreamingScores:
    """Score the windows of a stream of keys against questions. The scores do not depend on how the stream is cut."""

    def __init__(self, query: Query, stride: int) -> None:
        self.query, self.stride = query, stride
        self.position = 0
        self._last_half: Tensor | None = None
        self._last_floor: Tensor | None = None

    def seek(self, position: int) -> None:
        """Go to another token of the text, where the next keys begin. No window straddles it."""
        self.position, self._last_half, self._last_floor = position, None, None

    def score(self, keys: Tensor | Keys, headings: Headings | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Take the next tokens' keys (L, R), or (B, L, R) in fp32 where each question has a text of its own.

        L is a multiple of ``stride``. A half window matches a token of a question as well as its heading does, if that
        is better. Returns of the windows that these tokens end the scores (B, W), the first tokens (W,), and what
        headings added to the scores (B, W).
        """
        first = self.position if self._last_half is None else self.position - self.stride
        codes, scales = _parts(keys)
        query, floor = self.query, self._floor(headings, codes.shape[-2] // self.stride)
        if floor is None:
            scores, self._last_half = topk_search.window_scores(
                query.vectors, query.weights, codes, self.stride, self._last_half, scales
            )
            gains = torch.zeros_like(scores)
        else:
            scores, gains, self._last_half = topk_search.window_scores_above(
                query.vectors, query.weights, codes, self.stride, floor, self._last_half, scales
            )
        self.position += codes.shape[-2]
        starts = first + self.stride * torch.arange(scores.shape[1], device=scores.device)
        return scores, starts, gains

    def _floor(self, headings: Headings | None, halves: int) -> Tensor | None:
        """The matches of headings (B, M, H), the last half window's first; None where no heading matters."""
        above, none = self._last_floor, self.query.weights[..., None]
        if headings is None and above is None:
            return None
        new = none.new_full((*none.shape[:2], halves), float("-inf"))
        if headings is not None:
            new = headings.matches(self.query)
        self._last_floor = None if headings is None else new[..., -1:]
        if self._last_half is None:
            return new
        return torch.cat([torch.full_like(none, float("-inf")) if above is None else above, new], -1)


class StreamingSearch(StreamingScores):
    """Keep the best k windows of each question, in O(k) memory. They do not depend on how the stream is cut.

    ``gains`` (B, K) is what headings added to the kept windows' scores.
    """

    def __init__(self, query: Query, k: int, stride: int) -> None:
        super().__init__(query, stride)
        self.top = TopK(len(query.vectors), k, query.vectors.device)
        self.gains = torch.zeros_like(self.top.scores)

    def push(self, keys: Tensor | Keys, headings: Headings | None = None) -> Tensor:
        """Search the next keys, as ``score``. Returns what `TopK.merge` does: where each kept window came from."""
        scores, starts, gains = self.score(keys, headings)
        order = self.top.merge(scores, starts)
        self.gains = torch.cat([self.gains, gains.float()], 1).gather(1, order)
        return order
