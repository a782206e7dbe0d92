"""The command line as `python -m thresher`, which is how `torchrun -m thresher` starts it."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="thresher")
