"""The worker: the only room that imports transformers, datasets and peft."""
