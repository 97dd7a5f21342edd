"""The manifest's account of the machine: what decides bits, and no secret."""

import pytest
import torch

from mltune_cli.training.environment import environment_facts


def test_settings_are_recorded_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FANCY_FLAG", "1")
    monkeypatch.setenv("TORCH_HUB_TOKEN", "hunter2")
    monkeypatch.setenv("CUDA_REGISTRY_PASSWORD", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    facts = environment_facts(torch.device("cpu"))
    assert facts.variables["TORCH_FANCY_FLAG"] == "1"
    assert "hunter2" not in facts.model_dump_json()


def test_the_class_follows_what_decides_bits_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = environment_facts(torch.device("cpu"))
    elsewhere = facts.model_copy(update={"variables": {"PYTHONHASHSEED": "7"}, "python": "3.99"})
    assert elsewhere.environment_class() == facts.environment_class()
    for change in (
        {"processor": "another"},
        {"instruction_set": "DEFAULT"},
        {"torch_build": "9.9"},
        {"packages": facts.packages | {"numpy": "0"}},
        {"settings": facts.settings | {"threads": 2}},
        {"gpu": "a GPU"},
    ):
        other = facts.model_copy(update=change)
        assert other.environment_class() != facts.environment_class(), change
