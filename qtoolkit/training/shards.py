"""Gradients of a batch, part by part, several parts at a time: one thread of torch on each.

Convolutions of small networks gain little from a second thread: two parts side by side, one thread each, are done
sooner than one after the other on two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    # typing.Self needs Python 3.11.
    from typing_extensions import Self

__all__ = ["ShardedGradients"]

PartT = TypeVar("PartT", bound=Sized)
FactsT = TypeVar("FactsT")


class ShardedGradients(Generic[PartT, FactsT]):
    """Sets the gradients of ``parameters`` to the mean over the parts of a batch. Use as a context manager.

    ``loss_of(part)`` returns the loss of a part, a scalar mean over its images, and facts about it; it is called from
    several threads. Parts are added up in their order, so what comes out does not depend on the number of ``threads``.
    0 of them: one part after the other in the thread that asks, which is what a GPU wants.
    """

    def __init__(
        self,
        loss_of: Callable[[PartT], tuple[Tensor, FactsT]],
        parameters: Sequence[nn.Parameter],
        threads: int,
    ) -> None:
        self._loss_of = loss_of
        self._parameters = list(parameters)
        self._pool: ThreadPoolExecutor | None = None
        if threads:
            self._pool = ThreadPoolExecutor(
                threads, thread_name_prefix="part", initializer=torch.set_num_threads, initargs=(1,)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, parts: Sequence[PartT]) -> list[FactsT]:
        """Set the gradients from a batch in parts, whose lengths are their numbers of images; the facts about each."""
        images = sum(len(part) for part in parts)
        shares = [len(part) / images for part in parts]
        done = list((self._pool.map if self._pool is not None else map)(self._part, parts))
        for index, parameter in enumerate(self._parameters):
            given = [
                (share, one[index]) for share, (one, _) in zip(shares, done, strict=True) if one[index] is not None
            ]
            parameter.grad = None
            for share, gradient in given:
                if parameter.grad is None:
                    parameter.grad = gradient if share == 1 else share * gradient
                else:
                    parameter.grad.add_(gradient, alpha=share)
        return [facts for _, facts in done]

    def _part(self, part: PartT) -> tuple[tuple[Tensor, ...], FactsT]:
        loss, facts = self._loss_of(part)
        return torch.autograd.grad(loss, self._parameters, allow_unused=True), facts
