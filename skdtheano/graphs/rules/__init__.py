"""One rule per Op: from where its inputs are to where its outputs are."""
