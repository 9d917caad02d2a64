"""What all checks share: comparisons with messages, one report per failed check, and a guard
against synchronising with the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddice.core.config import TRUST, Config
from ddice.core.plugins import EVERY_MODULE


def expect(condition: object, message: str) -> None:
    """Raise AssertionError with `message` unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def expect_close(
    got: Tensor, wanted: Tensor, what: str, *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Raise AssertionError that says where two tensors differ most."""
    expect(
        got.shape == wanted.shape,
        f"{what}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}",
    )
    same = got == wanted  # infinities of the same sign
    error = torch.where(same, 0, (got - wanted).abs() - rtol * wanted.abs())
    if error.numel() and not bool((error <= atol).all()):
        index = int(torch.where(error.isnan(), torch.inf, error).argmax())
        wrong = got.flatten()[index].item()
        right = wanted.flatten()[index].item()
        raise AssertionError(
            f"{what}: expected {right:.6g}, got {wrong:.6g} at flat index {index} of shape "
            f"{tuple(got.shape)}"
        )


def expect_refusal(function: Callable[[], object], what: str) -> None:
    """Raise AssertionError unless calling `function` raises ValueError."""
    try:
        function()
    except ValueError:
        return
    raise AssertionError(f"expected a ValueError {what}")


def expect_same_state(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise AssertionError unless two states hold the same tensors, bit for bit."""
    expect(
        got.keys() == wanted.keys(),
        f"{what}: the names of the tensors differ in {sorted(got.keys() ^ wanted.keys())[:5]}",
    )
    for name, value in wanted.items():
        expect(torch.equal(got[name], value), f"{what}: {name} differs")


def survives_json(config: Config, *arguments: object) -> None:
    """A configuration has a kind, comes back from its JSON, and refuses unknown fields."""
    expect(
        isinstance(config, Config),
        f"expected a ddice.core.config.Config, got {type(config).__name__}",
    )
    expect(
        isinstance(getattr(config, "kind", None), str),
        f"{type(config).__name__} needs a field kind: Literal[...] with a default",
    )
    # What is in memory already may be imported again.
    again = type(config).model_validate_json(
        config.model_dump_json(), context={TRUST: (EVERY_MODULE,)}
    )
    expect(again == config, f"expected {config!r} back from its JSON, got {again!r}")
    try:
        type(config).model_validate({**config.model_dump(mode="json"), "no_such_field": 1})
    except ValidationError:
        return
    raise AssertionError("an unknown field was taken in silence: a configuration is strict")


class NoHostSync(TorchDispatchMode):
    """Makes .item(), float(tensor), bool(tensor) and `if tensor:` raise: each waits for the
    device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError(
                "update waits for the device (.item(), float(tensor), a branch on a tensor): "
                "return tensors, use torch.where"
            )
        return func(*args, **(kwargs or {}))


def expect_metrics(metrics: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
    """Raise AssertionError unless metrics are finite detached tensors, one number per seed."""
    for name, value in metrics.items():
        expect(
            isinstance(value, Tensor),
            f"metric {name} is a {type(value).__name__}: expected a detached tensor",
        )
        expect(not value.requires_grad, f"metric {name} is attached to the graph: detach it")
        expect(
            value.shape == shape,
            f"metric {name}: expected shape {shape}, one number per seed, got {tuple(value.shape)}",
        )
        expect(bool(value.isfinite().all()), f"metric {name} is {value.tolist()}")


@contextmanager
def untouched_global_generator(what: str) -> Iterator[None]:
    """Raise AssertionError when the block draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    expect(
        torch.equal(before, torch.get_rng_state()),
        f"{what} draws from the global generator: use ddice.core.randomness, a function of "
        "(seed, step)",
    )


def name_of(config: object) -> str:
    """What reports call a configuration: its kind."""
    return str(getattr(config, "kind", type(config).__name__))


def run_checks(
    checks: Sequence[Callable[..., None]],
    name: str,
    *arguments: Any,
) -> None:
    """Call every check with `arguments`; the first failure is reported with the name of what is
    checked and the check's own text.
    """
    for check in checks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(*arguments)
        except Exception as error:
            reason = str(error)
            if not isinstance(error, AssertionError):
                reason = f"{type(error).__name__}: {error}"
            about = (check.__doc__ or "").strip().splitlines()
            raise AssertionError(
                f"{name} fails {check.__name__} ({about[0] if about else ''}): {reason}"
            ) from error
