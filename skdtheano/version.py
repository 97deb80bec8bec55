"""The version of the package; the build reads it without importing anything else."""

VERSION = "0.1.0"
