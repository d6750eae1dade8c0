"""One model over several hosts: pipeline stages, and tensor parallelism within a host."""
