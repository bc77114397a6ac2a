"""In which batches the completions of a call are found."""

from collections.abc import Iterator, Sequence

import torch

from esalign.errors import BackendError
from esalign.types import Completion
from esalign_torch.batches import Limits, even_share
from esalign_torch.decoding import Batch, Engine, Request, Row

PARKING_SHARE = 0.25  # of a batch's rows: when no more are left, they wait for company
COMPANY_SHARE = 0.5  # of the most rows: when so many wait, they go on together


def complete_all(
    engine: Engine, request: Request, rows: Sequence[Row], limits: Limits
) -> Iterator[tuple[Row, Completion]]:
    """Yield all completions as they finish. When the memory runs out, the missing ones are begun again, in halves.

    Raises:
        BackendError: the memory does not hold a single completion.
    """
    missing = sorted(rows, key=lambda row: -len(row.ids))
    while missing:
        done = set()
        try:
            for row, completion in _complete_once(engine, request, missing, limits):
                done.add(row[:2])
                yield row, completion
        except torch.OutOfMemoryError as error:
            if limits.rows == 1:
                raise BackendError(
                    f"the device's memory does not hold one completion of {request.sampling.max_tokens} tokens to a "
                    f"prompt of {len(missing[0].ids)}: lower max_tokens, or use a smaller dtype or quantization"
                ) from error
            limits = limits.halved(len(missing))
            torch.cuda.empty_cache()
        missing = [row for row in missing if row[:2] not in done]


def _complete_once(
    engine: Engine, request: Request, rows: Sequence[Row], limits: Limits
) -> Iterator[tuple[Row, Completion]]:
    """Yield all completions, the longest prompts first.

    A step with few rows costs nearly as much as one with many. So when most rows of a batch have finished, the others
    are parked, and decoded on with those of other batches. The memory holds no more rows than one batch may have, those
    that wait included.
    """
    parked: list[Batch] = []
    start = 0
    while start < len(rows) or parked:
        most = limits.rows_for(len(rows[min(start, len(rows) - 1)].ids) + request.sampling.max_tokens)
        waiting = sum(batch.live for batch in parked)
        if start < len(rows) and waiting < COMPANY_SHARE * most:
            share = even_share(len(rows) - start, most - waiting)
            batch = Batch.read(engine, request, rows[start : start + share], limits.tokens)
            start += share
        else:
            batch = Batch.join(parked)
            parked = []
        others = start < len(rows) or parked
        yield from batch.run(until=int(PARKING_SHARE * batch.live) if others else 0)
        if batch.live:
            batch.shrink()
            parked.append(batch)
        del batch  # its memory, before the next one takes some
