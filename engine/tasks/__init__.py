"""The tasks, one file each, and what they share. `registry.TASKS` has all of them; a program imports only its own."""
