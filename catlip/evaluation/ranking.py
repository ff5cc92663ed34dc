"""Who finds whom: ranks and recall of cross-modal retrieval, exact, a block of scores at a time."""

import torch
from torch import Tensor

from catlip.evaluation.classified import NEVER

ROUNDING = 1e-6  # of the vectors' lengths: scores nearer than that are equal, however a matrix product rounded them
BLOCK = 2**24  # scores at a time, 64 MiB


def first_ranks(
    queries: Tensor, candidates: Tensor, query_owner: Tensor, candidate_owner: Tensor, block: int = BLOCK
) -> Tensor:
    """int64 [Q]: how many candidates of other owners score at least as well as the best of the query's own.

    queries [Q, D], candidates [C, D], scored by inner product; owner: number of the picture each belongs to. 0 is a
    hit at 1, 4 a hit at 5. A tie counts against the model, and so does NaN; a query whose owner has no candidate gets
    NEVER. Memory: a few blocks of scores, whatever Q and C are.
    """
    ranks = torch.empty(len(queries), dtype=torch.int64)
    size = max(1, block // max(len(candidates), 1))
    rounding = ROUNDING * queries.norm(dim=1, keepdim=True) * candidates.norm(dim=1).amax()
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        scores = queries[part] @ candidates.T
        own = query_owner[part, None] == candidate_owner
        best = scores.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
        better = ~(scores < best - rounding[part]) & ~own
        ranks[part] = torch.where(best[:, 0].isfinite(), better.sum(1), NEVER)
    return ranks


def recalls(ranks: Tensor, at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """{"r@1": percent, ..., "median_rank": the middle query's rank, from 1}."""
    found = {f"r@{k}": 100 * ranks.lt(k).double().mean().item() for k in at}
    return {**found, "median_rank": ranks.double().quantile(0.5).item() + 1}
