"""Hold what evaluators share that run another project's harness on a model in memory."""
