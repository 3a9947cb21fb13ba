"""vllm-mlx with its key from a file: on its own command line every user of this machine could read it.

A program of its own, run by the Python that vllm-mlx is installed in: mlx_server.py KEYFILE serve MODEL …
"""

import sys


def main() -> None:
    """Hand over to vllm-mlx's own command line."""
    # this file's folder is cclocal's, whose modules are not for another program
    del sys.path[0]
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - it starts in milliseconds
        key = file.read().strip()
    sys.argv = ["vllm-mlx", *sys.argv[2:], "--api-key", key]
    from vllm_mlx.cli import main as serve

    serve()


if __name__ == "__main__":
    main()
