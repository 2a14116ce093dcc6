"""What several workloads share on the way from a file to a training step."""
