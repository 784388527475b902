"""As a user would: commands, exit codes, tables."""
