"""Which documents share a row of `max_length` tokens."""

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def pack_by_length(lengths: Int64Array, capacity: int) -> tuple[Int64Array, Int64Array]:
    """Pack documents into rows, best-fit decreasing (within 22 % of the fewest rows possible).

    The same lengths give the same packing on any machine: ties go to the lower document index and
    to the row that came to that free space last.

    Args:
        lengths: tokens of each document, each at most `capacity`; shape (documents,).
        capacity: tokens of a row.

    Returns:
        `members`, the document indices row by row, shape (documents,), and `starts`, where each
        row begins in `members`, shape (rows + 1,).

    Source: D. S. Johnson, "Near-optimal bin packing algorithms", 1973.
    """
    order = np.argsort(-lengths, kind="stable")
    rows: list[list[int]] = []
    # Rows by free space, and a bit set of the spaces that occur, so that the tightest fit is found
    # by two operations on integers instead of a search.
    rows_by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for document in order.tolist():
        length = int(lengths[document])
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces &= ~(1 << space)
            rows[row].append(document)
        else:
            space, row = capacity, len(rows)
            rows.append([document])
        left = space - length
        if left:
            rows_by_space[left].append(row)
            spaces |= 1 << left
    counts = [len(row) for row in rows]
    members = np.array([document for row in rows for document in row], dtype=np.int64)
    return members, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
