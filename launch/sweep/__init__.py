"""The study: the cells of an ablation's grid as runs."""
