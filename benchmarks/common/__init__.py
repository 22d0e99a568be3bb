"""What the benchmarks share: processes, results on disk, tables, figures, the machine."""
