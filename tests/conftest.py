"""What must be set before NumPy and dask are imported; the rest is in `shared_clusters`."""

import os

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # as dask does for its workers

# Tiny networks would train on one worker, and then nothing would be tested of several.
os.environ.setdefault("DASK_SKDTHEANO__WORKERS", "all")

pytest_plugins = ["shared_clusters"]
