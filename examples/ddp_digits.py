"""Trains the network of ``train_digits.py`` in several processes, with DistributedDataParallel and gloo.

    torchrun --nproc-per-node 2 examples/ddp_digits.py             # half a minute on a CPU
    torchrun --nproc-per-node 2 examples/ddp_digits.py --quick     # a few steps: does it run?

The model is accelerated before it is wrapped. Each process draws its own digits; DistributedDataParallel averages the
gradients, so that the parameters of all processes stay the same, and the script checks that they do. On GPUs, pass
"nccl" for "gloo" and move the model and the images to the process's device. Needs scikit-learn and ``bcos``.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from train_digits import TEST, accuracy, digits, network, train

import bcos_kernels as bk


def difference_between_processes(model: torch.nn.Module) -> float:
    """The largest difference of any parameter between the processes."""
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    smallest, largest = mine.clone(), mine.clone()
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return (largest - smallest).max().item()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains on digits in several processes.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args(argv)
    if "RANK" not in os.environ:
        parser.error("several processes are needed, as torchrun --nproc-per-node 2 examples/ddp_digits.py starts them")
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    images, labels = digits()
    torch.manual_seed(rank)  # each process draws other digits; DDP takes the first one's parameters
    model = network()
    train(DistributedDataParallel(model), images[TEST:], labels[TEST:], 5 if options.quick else options.steps)
    apart = difference_between_processes(model)
    if rank == 0:
        print(f"{count} processes, each with {bk.report(model).accelerated} accelerated layers")
        print(f"{accuracy(model, images[:TEST], labels[:TEST]):.1%} of {TEST} test digits are right")
        print(f"largest difference of a parameter between the processes: {apart:g}")
    dist.barrier()  # a process that leaves early would be missed by the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
