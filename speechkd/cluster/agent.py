"""Runs torchrun and passes on a worker's exit code: `python -m speechkd.cluster.agent PIPE <torchrun's arguments>`.

torchrun itself turns every failure into exit code 1 and prints a table. A user's error (2) must get through, and one line is enough: it
goes to the launcher through the file descriptor PIPE, for launchers of other nodes want to know it, too.
"""

from __future__ import annotations

import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from speechkd.core.errors import EXIT_FAILED, EXIT_INPUT


def main(arguments: list[str]) -> int:
    """Exit code: 0 if all workers finished, 2 if the first worker to fail refused the user's input, otherwise 1."""
    pipe = int(arguments[0])
    os.set_inheritable(pipe, False)
    try:
        run(parse_args(arguments[1:]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == EXIT_INPUT:
            return EXIT_INPUT
        # A rank that was killed is the cause: the others fail a moment later, and torchrun may see both at once.
        killed = [found for found in error.failures.items() if found[1].exitcode < 0 and found[1].exitcode != -signal.SIGTERM]
        rank, failure = killed[0] if killed else (rank, failure)
        how = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        os.write(pipe, f"rank {rank} ended with {how}; all ranks were ended".encode())
        return EXIT_FAILED
    except SignalException as error:
        os.write(pipe, f"torchrun was ended by {error.sigval.name}, and ended all ranks".encode())
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
