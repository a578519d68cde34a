"""Ways to start runs (docs/launch.md), the ablation grid, benchmarks."""
