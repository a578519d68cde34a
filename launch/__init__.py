"""Ways to start runs: here, the ablation grid."""
