"""Hands: the only place that may touch the kernel. Tiny, typed, no decisions."""
