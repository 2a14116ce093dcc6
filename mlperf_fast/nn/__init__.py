"""Modules over ops/, shared by workloads."""
