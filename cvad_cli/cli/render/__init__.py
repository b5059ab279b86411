"""Records as a person reads them (rich tables) and as a program does: one file per command, named like it."""
