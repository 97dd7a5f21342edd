"""The settings of a training process."""

import os
import subprocess
import sys

import pytest

# Each child is the first to call a vector function, unless `settle` was.
_CHILDREN = """
import os, sys, torch
from mltune_cli.training.determinism import settle

rows = torch.rand(3520) * 100
differing = 0
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        settle(2)
        first, second = rows.cos(), rows.cos()
        os._exit(not torch.equal(first, second))
    differing += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(differing)
"""


@pytest.mark.long
def test_no_process_computes_its_first_cosines_otherwise() -> None:
    """About one child in a hundred did on a busy machine, before `settle` called one alone."""
    command = [sys.executable, "-W", "ignore", "-c", _CHILDREN, "100"]
    several = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    assert [one.communicate()[0].strip() for one in several] == ["0"] * len(several)


def test_one_thread_is_the_first_to_call_a_vector_function() -> None:
    """A cosine of few numbers: as many as one thread computes."""
    program = (
        "from torch.profiler import profile\n"
        "from mltune_cli.training.determinism import settle\n"
        "with profile(record_shapes=True) as profiled:\n    settle(2)\n"
        "print([event.input_shapes for event in profiled.events() if event.name == 'aten::cos'])"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[[[8]]]"
