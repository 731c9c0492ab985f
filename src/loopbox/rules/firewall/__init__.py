"""What a packet filter does to a packet: a model, an evaluator, and readers of two notations.

Owns: model.py (chains, rules, matches as values), evaluate.py (all outcomes a packet can have),
nftables.py (`nft -j list ruleset`), iptables.py (`iptables-save`).

Must never: run a program, or guess: what is not understood makes both ways possible, and an
outcome that hangs on it is marked unsure.

Example::

    ruleset = parse_ruleset(json_text)
    outcomes(ruleset, "input", Packet(...), locals_)
"""
