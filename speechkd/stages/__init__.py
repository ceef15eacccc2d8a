"""The commands of the CLI, one file each. A stage skips what is already done, and can be killed and run again."""
