"""Set before torch is loaded, as the command line does: spinning OpenMP threads of several ranks starve each other on few cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("SPEECHKD_DATA", None)  # where the user's corpora lie; tests have their own
