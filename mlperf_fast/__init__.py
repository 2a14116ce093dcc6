"""Trains the eight MLPerf Training v2.0 benchmarks and turns the runs into a submission."""

__version__ = "0.1.0"
