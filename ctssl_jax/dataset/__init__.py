"""The dataset folder, the contract between both packages; nothing here needs JAX."""
