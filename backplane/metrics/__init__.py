"""What is measured of a worker: one table, and how its rows are read. `backplane.exporters` hands it out."""
