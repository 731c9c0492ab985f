"""Decisions: values in, values out. No clock, files, sockets or privileges."""
