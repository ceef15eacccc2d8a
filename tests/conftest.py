"""Set before torch is loaded, as the command line does: spinning OpenMP threads of several ranks starve each other on few cores.

Triton decides when it is loaded whether it compiles or interprets, and DeepSpeed loads it: so it is loaded here, to interpret. Programs
that a test starts do not inherit that.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("SPEECHKD_DATA", None)  # where the user's corpora lie; tests have their own

os.environ["TRITON_INTERPRET"] = "1"
try:
    import triton.language  # noqa: F401
except ModuleNotFoundError:  # not Linux
    pass
del os.environ["TRITON_INTERPRET"]
