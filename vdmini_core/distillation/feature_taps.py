"""Feature taps: read the outputs of named modules during a forward pass, and leave no hook behind."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vdmini_core.errors import TrainingError
from vdmini_core.models.dit.features import feature_shaper

Features = dict[str, Tensor]


class _Enough(Exception):
    """A signal, not an error: the last tapped module has answered."""


def named_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path.

    Raises:
        TrainingError: naming the nearest path that exists.
    """
    try:  # every step asks for dozens: no list of all modules where the path is right
        return model.get_submodule(path)
    except AttributeError:
        near = difflib.get_close_matches(path, [name for name, _ in model.named_modules()], n=1)
        raise TrainingError(
            f"the model has no module `{path}` to read features from",
            expected=f"a module path such as `{near[0]}`" if near else "a module path of this model",
            fix="make the plan again (`vdmini plan`): it was made for another model",
        ) from None


def _first_tensor(output: Any) -> Tensor:
    """A block may return (hidden states, skips): the hidden states are its feature."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def feature_taps(model: nn.Module, paths: Sequence[str]) -> Iterator[Features]:
    """Within the context every forward pass fills the yielded dictionary: path -> output tensor, graph kept.

    Outputs are (B*F, C, h, w): of a transformer its tokens, put on the grid of their frames.
    The hooks are removed on leaving, whatever happens inside.

    Args:
        model: the network to read.
        paths: dotted module paths, as `Plan.feature_pairs` holds them.

    Raises:
        TrainingError: for a path that is not in the model.
    """
    features: Features = {}

    modules = {path: named_module(model, path) for path in dict.fromkeys(paths)}
    with feature_shaper(model) as shaped:

        def keep(path: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                features[path] = shaped(_first_tensor(output))

            return hook

        handles = [module.register_forward_hook(keep(path)) for path, module in modules.items()]
        try:
            yield features
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def encoder_taps(model: nn.Module, paths: Sequence[str]) -> Iterator[Features]:
    """Like `feature_taps`, but the forward pass ends once the last of `paths` has answered.

    The block inside the context is left at that point, without an error: the second half of the network
    is never computed. `paths` are in the order in which the data meets them.
    """
    with feature_taps(model, paths) as features:

        def stop(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            raise _Enough

        handle = named_module(model, paths[-1]).register_forward_hook(stop)
        try:
            yield features
        except _Enough:
            pass
        finally:
            handle.remove()
