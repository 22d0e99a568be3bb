"""What the project costs, measured: ``python -m benchmarks NAME``, see ``--help``."""
