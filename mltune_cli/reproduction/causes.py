"""The causes that a diagnosis may name: each with its title and its remedy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Why two runs differ.

    Attributes:
        name: how `report.json` and `docs/causes.md` call it.
        title: in a few words.
        remedy: what to do, in one sentence.
    """

    name: str
    title: str
    remedy: str


_ALL = (
    Cause(
        "unseeded-initialisation",
        "trained weights are drawn from generators that nobody seeded",
        "call torch.manual_seed (and random.seed, numpy.random.seed) before the model and its "
        "adapter are made",
    ),
    Cause(
        "seed-after-initialisation",
        "trained weights are drawn before the seed is set, so the seed does not reach them",
        "set the seed before the model is wrapped or made; with TRL, call "
        "transformers.set_seed(seed) first, or pass a model that is wrapped already",
    ),
    Cause(
        "unseeded-random-numbers",
        "random numbers come from a generator that nobody seeded",
        "seed Python's, NumPy's and torch's generators at the start, or pass a generator with a "
        "seed of its own",
    ),
    Cause(
        "random-numbers-consumed",
        "something else draws from the generator that training draws from",
        "give what draws a generator of its own, or key the generator by seed and step",
    ),
    Cause(
        "hash-seed",
        "the order of a set, which Python's hash seed decides",
        "sort what is iterated over; or start Python with PYTHONHASHSEED=0",
    ),
    Cause(
        "directory-order",
        "the order in which a folder lists its files",
        "sort what glob, listdir or scandir return",
    ),
    Cause("clock", "the date or time enters training", "freeze the date, or leave it out"),
    Cause("time-zone", "the time zone enters training", "use UTC, or leave the time out"),
    Cause("locale", "the locale enters training", "name the encoding and the order explicitly"),
    Cause(
        "working-directory",
        "the working directory enters training",
        "resolve paths against the script's own folder",
    ),
    Cause("umask", "the umask enters training", "set the modes of files explicitly"),
    Cause("home", "files in the home folder enter training", "name caches and settings explicitly"),
    Cause(
        "cold-cache",
        "a cache holds something else than what would be computed now",
        "key the cache by the content that it was computed from, or start without it; where it "
        "holds what a compiler found to be fastest, keep it with the run, or leave no choice: "
        "torch.use_deterministic_algorithms(True) with torch._inductor.config.deterministic = "
        "True, a single triton.Config",
    ),
    Cause(
        "loader-workers",
        "the number of loader workers decides what is loaded",
        "key the random numbers of a row by (seed, epoch, index), not by the worker",
    ),
    Cause(
        "thread-count",
        "the number of threads decides the order of sums",
        "pin it: torch.set_num_threads, OMP_NUM_THREADS; mltune: reproducibility.threads",
    ),
    Cause(
        "instruction-set",
        "the processor's instruction set decides the kernels",
        "compare on one kind of processor, or pin ATEN_CPU_CAPABILITY",
    ),
    Cause(
        "number-of-processes",
        "the number of processes decides the order of sums",
        "sum gradients in an order that the processes do not decide, as mltune train does",
    ),
    Cause(
        "evaluation-cadence",
        "how often is evaluated changes what is trained",
        "evaluate with generators of its own",
    ),
    Cause(
        "resume",
        "a resumed run is not the continuation of the one that was cut short",
        "save every generator's state and the position in the data with the checkpoint, write "
        "checkpoints to a temporary folder and rename them; or key both by (seed, step)",
    ),
    Cause(
        "argument",
        "the argument that was varied decides bits",
        "pin it, and keep it with the run",
    ),
    Cause(
        "environment-variable",
        "the environment variable that was varied decides bits",
        "pin it, and keep it with the run",
    ),
    Cause(
        "recipe-key",
        "the key that was varied decides bits",
        "it is part of the recipe: pin it",
    ),
    Cause(
        "data-order",
        "the same rows come in another order",
        "seed the sampler, and sort what the rows are read from",
    ),
    Cause(
        "data-content",
        "the rows themselves differ",
        "look for what writes or chooses them: a clock, a cache, a download, a folder listing",
    ),
    Cause(
        "hyperparameters",
        "the optimizer's settings differ",
        "look for what computes them: a schedule, an environment variable, a clock",
    ),
    Cause(
        "nondeterministic-operation",
        "an operation gives several results from the same inputs",
        "call torch.use_deterministic_algorithms(True), or replace the operation; one that is not "
        "torch's own is not reached by that: give a kernel that Triton tunes a single "
        "triton.Config, one that races another algorithm",
    ),
    Cause(
        "kernel-search",
        "each process looks for the fastest kernel, and may take another one",
        "set torch.backends.cudnn.benchmark = False; strict mode alone goes on looking",
    ),
    Cause(
        "uninitialised-memory",
        "an operation reads memory that nothing has written",
        "fill the tensor (torch.zeros instead of torch.empty), or compute it before it is read",
    ),
    Cause(
        "untraced-write",
        "something outside torch writes to a tensor's memory",
        "look for .numpy(), from_numpy or a C extension that shares the tensor's memory",
    ),
    Cause(
        "precision-setting",
        "the precision of matrix products is not the same",
        "set torch.set_float32_matmul_precision, and torch.backends.cuda.matmul.allow_tf32, "
        "explicitly",
    ),
    Cause(
        "control-flow",
        "the runs do not call the same operations",
        "look for what decides the branch: an environment variable, a clock, a random number",
    ),
    Cause(
        "outside-value",
        "a number or a tensor that does not come from torch is not the same",
        "look for what computes it: a clock, a process id, a file, a library outside torch",
    ),
    Cause(
        "environment",
        "the runs were computed in different environments",
        "compare the two manifests, and run both in one environment",
    ),
    Cause("unknown", "no cause could be shown", "read the evidence and the trace"),
)
CAUSES = {cause.name: cause for cause in _ALL}
