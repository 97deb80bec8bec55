"""Users' own graphs as functions: here, or over the rows of dask arrays."""
