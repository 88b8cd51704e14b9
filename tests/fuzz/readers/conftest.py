"""What pytest leaves out."""

collect_ignore = ["fuzzed.py"]  # imports atheris, which is not among what tests need
