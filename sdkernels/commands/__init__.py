"""The groups of subcommands of the command line, one module a group."""
