"""Where values go in a trace: whether a step trains on what came of a call."""

from collections.abc import Iterable, Set

from mltune_cli.witness.trace_record import TracedTensor, TraceRecord

# The backward pass begins by asking the loss for its like.
_BEGINS_BACKWARD = "aten.ones_like"
# Python gets numbers, and whatever it does with them is not seen.
_GIVES_NUMBERS = ("aten._local_scalar_dense", "python.random.", "numpy.random.")
TRAINING_PHASES = ("backward", "optimizer")


class TraceFlow:
    """Follows the results of some calls through all calls that read them.

    What leaves torch and comes back is lost: what is said to reach the training does; what is not
    may do so too.
    """

    def __init__(self) -> None:
        self._origins: dict[int, frozenset[int]] = {}
        self._memory: dict[int, set[int]] = {}
        self._numbers: frozenset[int] = frozenset()
        self._reaching: set[int] = set()
        self._begun: frozenset[int] = frozenset()

    @property
    def reaching(self) -> Set[int]:
        """The followed calls of which the loss, the backward pass or the optimizer has read."""
        return self._reaching

    @property
    def numbers(self) -> Set[int]:
        """The followed calls of which Python has read a number."""
        return self._numbers

    def origins(self, read: TracedTensor) -> Set[int]:
        """Return the followed calls that a tensor came of.

        Those of its memory where its last writer is none of them, which may have filled a part.
        """
        last = self._origins.get(read.made_by) if read.made_by is not None else None
        return last or self._of_memory(read)

    def _of_memory(self, tensor: TracedTensor) -> Set[int]:
        if tensor.memory is None:
            return frozenset()
        return self._memory.get(tensor.memory, frozenset())

    def _note_memory(self, tensors: Iterable[TracedTensor], origins: Set[int]) -> None:
        for tensor in tensors:
            if tensor.memory is not None:
                self._memory.setdefault(tensor.memory, set()).update(origins)

    def follow(self, tensors: Iterable[TracedTensor], place: int) -> None:
        """Take the memory of some tensors, which was written outside torch, as a call's."""
        self._note_memory(tensors, {place})

    def add(
        self,
        place: int,
        record: TraceRecord,
        more: Set[int] = frozenset(),
        *,
        reads: Iterable[TracedTensor] | None = None,
        gives_others: bool = True,
    ) -> None:
        """Take the next call.

        Args:
            place: its place in the trace.
            record: of the call.
            more: the followed calls that it comes of besides by what it reads; itself, to be
                followed from here on.
            reads: those of its inputs that are not the same in two runs; all of them, where that is
                not known.
            gives_others: what it gives is not the same in two runs, or that is not known.
        """
        others = record.inputs if reads is None else reads
        origins = frozenset(more).union(*map(self.origins, others))
        self._note_beginning(record, origins)
        if not origins or not gives_others:
            return
        self._origins[place] = origins
        self._note_memory(record.outputs, origins)
        if record.operation.startswith(_GIVES_NUMBERS):
            self._numbers |= origins
        if record.phase in TRAINING_PHASES:
            self._reaching |= origins

    def _note_beginning(self, record: TraceRecord, origins: frozenset[int]) -> None:
        """Take what a loss came of as what is trained on, once its backward pass has begun.

        The next call that is more than a view tells whether it has: ones are asked for elsewhere
        as well.
        """
        if record.operation.startswith(_BEGINS_BACKWARD):
            self._begun |= origins
        elif record.inputs or record.outputs:
            if record.phase == "backward":
                self._reaching |= self._begun
            self._begun = frozenset()
