"""`python -m flows.services.ray_nodes ADDRESS`: the nodes of a Ray cluster as JSON, in a process of its own.

Ray reads its token when it is imported, and asks on and on where it is refused: whoever starts this sets the
environment and a limit of time. `ray.init` would make a driver, which takes seconds.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Print a list of the slots of every node that is alive."""
    import ray._raylet

    # What `ray health-check` asks with.
    client = ray._raylet.GcsClient(address=sys.argv[1])
    nodes = client.get_all_node_info(timeout=10).values()
    print(json.dumps([node.resources_total.get("CPU", 0.0) for node in nodes if node.state == 0]))


if __name__ == "__main__":
    main()
