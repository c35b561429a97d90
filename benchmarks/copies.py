"""What a copy of a model costs that shares its weights, as every erasure and every training makes them.

    python benchmarks/copies.py [--quick] [--base MODEL] [--json FILE]

The plain way is ``copy.deepcopy`` with the weights left out. Both are measured in turn, round after round, in one
process; told is the median.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from palimpsest.model import Model
from palimpsest.model.network import NETWORKS
from palimpsest.model.weights import twin
from runner import seconds


def plain(network: nn.Module) -> nn.Module:
    """The plain way."""
    return copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {"deepcopy": plain, "twin": twin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--base", default="miniature", help="a folder, a hub id, or miniature")
    parser.add_argument("--json", type=Path, default=None, help="write the seconds here")
    arguments = parser.parse_args()
    model = Model.load(arguments.base)
    networks = [getattr(model, name) for name in NETWORKS]
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(5 if arguments.quick else 50):
        for name, way in WAYS.items():
            times[name].append(seconds(lambda way=way: [way(network) for network in networks]))  # type: ignore[misc]
    told = {name: statistics.median(some) for name, some in times.items()}
    modules = sum(len(list(network.modules())) for network in networks)
    drawn = Table(title=f"A copy of {arguments.base} ({modules} modules) with its weights shared")
    for heading in ("way", "milliseconds", "ratio"):
        drawn.add_column(heading, justify="left" if heading == "way" else "right")
    for name, cost in told.items():
        drawn.add_row(name, f"{1000 * cost:.1f}", f"{told['deepcopy'] / cost:.2f}")
    Console().print(drawn)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
