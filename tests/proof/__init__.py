"""What the suite only samples, looked for at length: `make proof`. See `tests.proof.__main__`."""
