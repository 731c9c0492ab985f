"""Codecs: bytes or text to values and back; incremental, no I/O, no clock, no decisions."""
