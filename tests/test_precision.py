import pytest
import torch

from palimpsest.audit_file import load_audit, make_audit
from palimpsest.model import computing, fastest_precision
from scripted import audit

CPU = torch.device("cpu")


def has(monkeypatch: pytest.MonkeyPatch, **instructions: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **instructions}, raising=False)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_computes_in_bf16_where_it_has_the_instructions(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    has(monkeypatch, avx512_bf16=False)
    assert fastest_precision(CPU) == "fp32"
    has(monkeypatch, **{name: True})
    assert fastest_precision(CPU) == "bf16"


def test_a_torch_that_cannot_say_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_precision(CPU) == "fp32"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_networks_compute_in_the_precision_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    layer, data = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with computing(CPU, precision):
        assert layer(data).dtype == dtype
    has(monkeypatch, avx512_bf16=precision == "bf16")
    with computing(CPU):
        assert layer(data).dtype == dtype


@pytest.mark.parametrize("name", ["quick", "standard", "erasers"])
def test_the_shipped_audits_take_what_is_fastest_here_and_say_what_that_was(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for instruction, precision in ((True, "bf16"), (False, "fp32")):
        has(monkeypatch, avx512_bf16=instruction)
        read = load_audit(name)
        assert read.precision == precision
        assert make_audit(read.table()) == read  # what is written down holds on any machine
    assert audit().precision == "fp32"
