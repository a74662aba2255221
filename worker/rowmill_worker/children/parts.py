"""How texts, sorted by length, are cut into the parts that go to a model at once. Pure.

Whatever is shorter than the longest text of a part is padded to its length, so a part costs its longest text for each
of its texts; and each part costs something of its own. Few parts pad much, many parts pay that often. The cut that
costs least is found exactly for up to `_PLACES` texts; of more, only so many places between them are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

_PLACES: Final = 128


def cut(lengths: Sequence[float], *, most: int, fixed: float) -> list[int]:
    """The sizes of the parts, in the order of `lengths`, which ascend; their sum is how many lengths there are.

    `most` is how many texts a part may have, from 1; `fixed` what a part costs by itself, in the unit of the lengths.
    """
    count = len(lengths)
    step = min(max(1, count // _PLACES), most)
    places = [*range(0, count, step), count]
    costs, before = [0.0], [0]
    first = 0
    for last in range(1, len(places)):
        end = places[last]
        longest = lengths[end - 1]
        while end - places[first] > most:
            first += 1
        # The first of equals: the longest go in the largest part, where what does not fit shows at once.
        cost, start = min((costs[i] + fixed + (end - places[i]) * longest, i) for i in range(first, last))
        costs.append(cost)
        before.append(start)
    ends = [len(places) - 1]
    while ends[-1] > 0:
        ends.append(before[ends[-1]])
    return [places[end] - places[start] for start, end in pairwise(reversed(ends))]
