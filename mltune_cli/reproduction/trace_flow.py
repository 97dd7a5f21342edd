"""Where values go in a trace: whether a step trains on what came of a call."""

from collections.abc import Collection, Set

from mltune_cli.witness.trace_record import TraceRecord

# The backward pass begins by asking the loss for its like.
_BEGINS_BACKWARD = "aten.ones_like"
# Python gets numbers, and whatever it does with them is not seen.
_GIVES_NUMBERS = ("aten._local_scalar_dense", "python.random.", "numpy.random.")
_TRAINING_PHASES = ("backward", "optimizer")


class TraceFlow:
    """Follows the results of some calls through all calls that read them.

    Memory that is written in parts is followed by who wrote to it last, and what leaves torch and
    comes back is lost: what is said to reach the training does; what is not may do so too.
    """

    def __init__(self) -> None:
        self._origins: dict[int, frozenset[int]] = {}
        self._numbers: frozenset[int] = frozenset()
        self._reaching: set[int] = set()

    @property
    def reaching(self) -> Set[int]:
        """The followed calls of which the loss, the backward pass or the optimizer has read."""
        return self._reaching

    @property
    def numbers(self) -> Set[int]:
        """The followed calls of which Python has read a number."""
        return self._numbers

    def origins(self, maker: int | None) -> Set[int]:
        """Return the followed calls that what a call gave came of."""
        return self._origins.get(maker, frozenset()) if maker is not None else frozenset()

    def follow(self, makers: Collection[int | None], place: int) -> None:
        """Take what some calls gave, or memory from before the trace, as what came of a call.

        Args:
            makers: of memory that was written outside torch; see `TracedTensor.made_by`.
            place: of the call at which that is seen.
        """
        for maker in makers:
            if maker is not None:
                self._origins[maker] = frozenset({place})

    def add(
        self,
        place: int,
        record: TraceRecord,
        more: Set[int] = frozenset(),
        *,
        gives_others: bool = True,
    ) -> None:
        """Take the next call.

        Args:
            place: its place in the trace.
            record: of the call.
            more: the followed calls that it comes of besides by what it reads; itself, to be
                followed from here on.
            gives_others: what it gives is not the same in two runs, or that is not known.
        """
        origins = frozenset(more).union(*(self.origins(one.made_by) for one in record.inputs))
        if record.operation.startswith(_BEGINS_BACKWARD):
            self._reaching |= origins
        if not origins or not gives_others:
            return
        self._origins[place] = origins
        if record.operation.startswith(_GIVES_NUMBERS):
            self._numbers |= origins
        if record.phase in _TRAINING_PHASES:
            self._reaching |= origins
