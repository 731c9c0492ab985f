"""The keeper: the one background process per user that holds the boxes and relays."""
