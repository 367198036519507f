"""What the command line shows: tables and live progress, made from the library's values."""
