"""Data and machines without symbols: row blocks, compiled programs, rounds on a cluster."""
