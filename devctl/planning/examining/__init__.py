"""What `devctl doctor` looks at, a question a file; each gives findings and raises nothing that a machine can cause."""
