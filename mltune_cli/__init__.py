"""mltune fine-tunes causal language models and proves that the training can be repeated."""

__version__ = "0.1.0"
