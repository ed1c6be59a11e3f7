"""What every test runs under. The environment is set before torch is imported, which reads it once."""

import os

# Idle OpenMP threads must sleep, and a worker gets one thread: spinning ones slow every other process many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

# The same examples in every run: a failure on one machine is a failure on all.
settings.register_profile("valuembed", deadline=None, derandomize=True, database=None)
settings.load_profile("valuembed")
