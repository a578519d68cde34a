"""How many more annotations: learning curves of what is at hand, carried on."""
