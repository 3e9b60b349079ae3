"""Several processes that train one model in accelerate: what they exchange, and DDP's wrapper after a move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loratlas.dynamic.peers import Peers

if TYPE_CHECKING:
    import torch


class Processes(Peers):
    """The processes of torch.distributed's default group.

    Args:
        device: where the run's tensors live.
    """

    alone = False

    def __init__(self, device: Any) -> None:
        self.device = device

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """See `loratlas.dynamic.peers.Peers.mean`."""
        import torch.distributed as dist

        whole = value.detach().to(self.device, copy=True)
        dist.all_reduce(whole)
        return whole / dist.get_world_size()

    def first(self, values: Sequence[int]) -> list[int]:
        """See `loratlas.dynamic.peers.Peers.first`."""
        import torch

        shared = torch.tensor(list(values), dtype=torch.int64, device=self.device)
        self.share([shared])
        return shared.tolist()

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        import torch.distributed as dist

        for tensor in tensors:
            whole = tensor.detach().to(self.device).contiguous()
            dist.broadcast(whole, src=0)
            tensor.detach().copy_(whole)


def peers_of(accelerator: Any) -> Peers:
    """The processes that accelerate has brought together."""
    return Processes(accelerator.device) if accelerator.num_processes > 1 else Peers()


def rebuild_wrapper(trainer: Any) -> None:
    """Have DDP reduce the gradients of the parameters that there are now.

    DDP registers with the parameters that it finds when it is made. It is made anew in the object that the training
    loop holds, with accelerate's own arguments; the reducer of before takes its hooks along when it goes. Parameters
    are alike in all processes already, so that nothing is sent.
    """
    from torch.nn.parallel import DistributedDataParallel

    wrapped = trainer.model_wrapped
    while not isinstance(wrapped, DistributedDataParallel):
        if not hasattr(wrapped, "module"):
            return
        wrapped = wrapped.module
    handler = trainer.accelerator.ddp_handler
    options = handler.to_kwargs() if handler is not None else {}
    module, devices, output = wrapped.module, wrapped.device_ids, wrapped.output_device
    training = wrapped.training
    vars(wrapped).update(reducer=None, logger=None)
    DistributedDataParallel.__init__(
        wrapped, module, **(options | {"device_ids": devices, "output_device": output, "init_sync": False})
    )
    wrapped.train(training)
    if handler is not None:
        handler.register_comm_hook(wrapped)
