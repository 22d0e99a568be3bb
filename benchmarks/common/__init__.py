"""What the benchmarks share: rows in processes of their own, rounds, tables, figures."""
