"""DLRM: click prediction on Criteo 1TB."""
