"""The public functions: the same words as the command line, with results that print well and plot themselves."""
