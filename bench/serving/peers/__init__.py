"""How each peer serves the models. Run in the peers' own environments, never imported by the benchmark."""
