"""Settings of victims: one file per data set, `--config=FILE.py:ATTACK` or `FILE.py:ATTACK,fast`."""
