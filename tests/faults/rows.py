"""The table of causes, in the words of the documentation: what each is, and how it shows.

Only the standard library is imported, so that the documentation can be written without torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A cause for which two runs differ.

    Attributes:
        number: by which tests and issues call it; 0 for what came later.
        title: the cause in a few words.
        symptom: what is seen of it.
        names: causes that a diagnosis gives it, as `causes.py` has them.
        faults: scripts in `tests/faults/scripts/` that have it; `gpu_catalogue.py` has those that
            need a GPU.
        tests: other tests that plant it, as `FILE::TEST`.
        hint: how to look for it, where repeating the command is not enough.
        unplanted: why nothing plants it.
    """

    number: int
    title: str
    symptom: str
    names: tuple[str, ...]
    faults: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    hint: str = ""
    unplanted: str = ""


_METAMORPHIC = "tests/faults/test_metamorphic.py::"
_TRAINING = "tests/training/"

ROWS = (
    Row(1, "Weights drawn before a seed is set",
        "The trained weights start from other values in each run. With LoRA the first losses are "
        "still equal, since an adapter starts as zero; they part one step later.",
        ("unseeded-initialisation", "seed-after-initialisation"),
        ("plain_unseeded_init", "trainer_unseeded_adapter"),
        ("tests/faults/test_trl_command.py::test_trl_with_peft_draws_its_adapter_before_the_seed",)),
    Row(2, "NumPy's generator in loader processes",
        "Every loader process augments its rows alike, or each run otherwise.",
        ("loader-workers", "unseeded-random-numbers"),
        ("plain_unseeded_workers",),
        (_METAMORPHIC + "test_loader_workers_decide_nothing",)),
    Row(3, "The number of loader processes",
        "A machine with other cores loads with other processes, and trains other weights.",
        ("loader-workers",), ("plain_worker_draws",),
        (_TRAINING + "test_evaluation.py::test_no_cadence_and_no_loader_leaves_a_trace",)),
    Row(4, "Random rows, after a resume",
        "A run that was interrupted sees other rows from the step after the interruption on.",
        ("resume",), ("plain_dataset_on_resume", "trainer_dataset_on_resume")),
    Row(5, "Evaluation draws from training's generator",
        "Evaluating more often gives another model.",
        ("evaluation-cadence", "argument"), ("trainer_evaluation",),
        (_TRAINING + "test_loop.py::test_evaluation_and_logging_leave_no_trace_in_the_adapter",)),
    Row(6, "Generators that a checkpoint does not hold",
        "After a resume dropout masks are other ones.",
        ("resume",), ("plain_resume_without_rng", "lightning_resume")),
    Row(7, "The order of a set",
        "Token numbers, rows or file contents come in another order in each process.",
        ("hash-seed",), ("plain_set_order", "trainer_set_order")),
    Row(8, "The order of a folder's listing",
        "Another file system, or a copy of the data, gives the first batch other rows.",
        ("directory-order",), ("plain_shards",)),
    Row(9, "A cache that holds something else",
        "The first run differs from all later ones, which agree with each other.",
        ("cold-cache",), ("plain_lossy_cache",)),
    Row(10, "The date in a chat template",
        "The same conversations become other tokens tomorrow.",
        ("clock",), ("trl_dated_template",)),
    Row(11, "Another tokenizer",
        "The same text becomes other tokens.", ("argument", "recipe-key"),
        ("plain_causal_model",)),
    Row(12, "Another revision of the model",
        "The base weights differ before the first step.", ("argument", "recipe-key"),
        ("plain_causal_model",)),
    Row(13, "Another version of a package",
        "Losses drift apart a little, from the first step on.",
        ("environment-variable", "environment"), ("plain_dependency",)),
    Row(14, "Another attention kernel",
        "The forward pass parts at the first attention.", ("argument", "recipe-key"),
        ("trainer_attention",)),
    Row(15, "Flash attention's backward pass",
        "The forward pass is equal; the gradients of the queries are not.",
        ("nondeterministic-operation",)),
    Row(16, "Strict mode that only warns",
        "With `warn_only=True` a nondeterministic backward pass runs after a warning. The one that "
        "is planted samples images; memory-efficient attention and cuDNN's, which have been "
        "reported, came out alike on an H200 with torch 2.11, with strict mode and without.",
        ("nondeterministic-operation",)),
    Row(17, "Atomic additions, and other races",
        "A sum comes in another order each time: the last bits of some gradients differ.",
        ("nondeterministic-operation",), ("plain_race",)),
    Row(18, "The workspace of cuBLAS",
        "How large it is decides how a product is split, and `CUBLAS_WORKSPACE_CONFIG` how large "
        "it is. Products on several streams, which have been reported to differ where it is not "
        "set, came out alike on an H200 with torch 2.11, which gives each stream a workspace.",
        ("environment-variable",)),
    Row(19, "TF32", "One kind of GPU, or one setting, rounds the inputs of products, another does "
        "not.", ("environment-variable", "argument", "precision-setting")),
    Row(20, "cuDNN's search for the fastest kernel",
        "A process may choose another convolution than the one before it, in strict mode too.",
        ("kernel-search",)),
    Row(21, "Inductor's search for the fastest kernel",
        "Runs agree as long as they share a cache, and part when it is empty. Inductor's "
        "`deterministic` mode alone did not end that (an H100, torch 2.11).",
        ("cold-cache",)),
    Row(22, "Triton's search for the fastest configuration",
        "Each cold start may choose another one.",
        ("cold-cache", "nondeterministic-operation")),
    Row(23, "The number of CPU threads",
        "A machine with other cores adds up in other parts.", ("thread-count",),
        ("plain_threads",)),
    Row(24, "The processor's instruction set",
        "Another processor takes other kernels; even initial weights may differ.",
        ("instruction-set",), ("plain_kernels",)),
    Row(25, "Memory that nobody has filled",
        "Garbage, zeros or NaN, depending on what was in that memory before.",
        ("uninitialised-memory",), ("plain_uninitialised",)),
    Row(26, "Activation checkpointing that does not keep the generator's state",
        "The backward pass sees another dropout mask than the forward pass.",
        ("random-numbers-consumed",),
        tests=(_METAMORPHIC + "test_activation_checkpointing_draws_the_same_dropout_masks",),
        hint="Train with and without activation checkpointing and compare: two runs alike agree."),
    Row(27, "The normalisation of accumulated gradients",
        "Two micro-batches of one row are not one of two.", ("unknown",),
        tests=(_TRAINING + "test_step.py::test_accumulation_does_not_change_the_normalisation",),
        hint="Cut the same rows into other micro-batches and compare the losses."),
    Row(28, "The number of processes",
        "Another number of GPUs gives another model.", ("number-of-processes", "argument"),
        ("ddp_world_size",),
        (_TRAINING + "test_processes.py::test_several_processes_train_what_one_does",
         "tests/commands/test_processes.py::test_a_plain_all_reduce_would_not")),
    Row(29, "Padding and company in a batch",
        "A row's loss depends on the rows beside it.", ("unknown",),
        tests=(_TRAINING + "data/test_collating.py::"
               "test_neither_padding_nor_company_changes_a_loss",),
        hint="Compute the loss of a row alone and in company."),
    Row(30, "A checkpoint that is not whole, or not of one step",
        "A resume fails, or goes on from a state that never was.", ("resume",),
        ("plain_stale_checkpoint",),
        ("tests/commands/test_resume.py::test_killed_at_random_moments",
         "tests/commands/test_resume.py::test_damaged_checkpoints_are_passed_over_with_a_sentence")),
    Row(31, "A 4-bit base on several GPUs",
        "A difference in the loss has been reported by others.", (),
        unplanted="what parts such runs is not known, so there is nothing to plant; mltune does "
        "not claim that they repeat, and `repro-check` refuses to check them"),
    Row(0, "A race in a kernel that torch's compiler wrote",
        "Compiled layers come to other bits each time, and without the compiler they agree. Seen "
        "with torch 2.11 on GPUs: with dropout, in a layer whose input needs no gradient, random "
        "numbers are read back by other threads than wrote them, with nothing to wait in between; "
        "one gradient in hundreds differs. Set `torch._inductor.config.fallback_random = True`, as "
        "`mltune train` does, or leave that layer uncompiled. `mltune train` computes equal rows "
        "twice before its first step and ends where they differ.", ("nondeterministic-operation",),
        tests=(_TRAINING + "test_gpu_steps.py::"
               "test_a_race_in_a_compiled_kernel_is_found_before_the_first_step",)),
    Row(0, "The first use of a vector function by several threads",
        "On a CPU with several threads, about one process in a hundred computes half of its first "
        "exp, cos, sin or erf of 2048 numbers or more with errors of 1e-4, or NaN; never again "
        "after that. Rotary embeddings of a first batch are enough, so the first loss differs, and "
        "two later runs agree. Seen with torch 2.13.0 and MKL on Intel's processors, more often on "
        "a busy machine: threads that are all the first to call MKL's vector functions. Call one "
        "of them on a few numbers before anything else (`torch.ones(8).cos()`), as `mltune train` "
        "does, or use one thread.", (),
        unplanted="it comes by chance, and cannot be made to come; `repro-check` answers `unknown` "
        "and names the possibility"),
    Row(0, "The same rows in another order",
        "Batches hold the same rows, differently dealt.", ("data-order",),
        ("plain_order_of_arrival",)),
    Row(0, "Random numbers that nobody seeded",
        "Shuffling, sampling or noise differs in each run, though torch is seeded.",
        ("unseeded-random-numbers",),
        ("plain_unseeded_shuffle", "plain_numpy_augmentation", "plain_numpy_fill",
         "plain_statistics", "plain_two_models", "plain_recurrent", "lightning_unseeded_shuffle",
         "trl_unseeded_order", "accelerate_noise", "accelerate_shuffle")),
    Row(0, "Other rows", "A row is missing, or has another content.", ("data-content",),
        ("plain_dropped_row",)),
    Row(0, "The clock", "The time is in the rows, or in a schedule.", ("clock",),
        ("plain_clock_in_rows", "plain_clock_schedule", "lightning_clock")),
    Row(0, "Another learning rate",
        "Weights part from the first step on, by less than a log shows.", ("hyperparameters",),
        ("plain_learning_rate",)),
    Row(0, "Something else draws random numbers",
        "Training's own draws are other ones from then on.", ("random-numbers-consumed",),
        ("plain_consumed_rng", "ddp_one_rank")),
    Row(0, "A write that torch does not see",
        "A tensor changes between the operation that made it and the one that reads it.",
        ("untraced-write",), ("plain_untraced_write",)),
    Row(0, "Another branch",
        "One run calls an operation that the other does not call; one weight that is moved by its "
        "last bit is enough.", ("control-flow",), ("plain_one_ulp", "plain_control_flow")),
    Row(0, "Another precision", "Products are rounded otherwise, or numbers are made with more "
        "digits.", ("precision-setting",), ("plain_precision", "plain_default_dtype")),
)  # fmt: skip
